"""A card of a student, and how tests write one."""

from __future__ import annotations

from pathlib import Path

CARD = """---
license: creativeml-openrail-m
model-index:
- name: Student
  results:
  - task: {type: text-to-image}
    dataset: {type: coco-2014, name: MS-COCO 2014 val, config: coco30k-bksdm, split: validation}
    metrics:
    - {type: fid, name: FID, value: 16.98}
    - {type: inception_score, name: IS, value: 31.680}
    - {type: clip_score, name: CLIP score (ViT-g/14), value: 0.2677}
    source: {name: Paper, url: "https://example.org/paper"}
  - task: {type: text-to-image}
    dataset:
      type: coco-2014
      name: MS-COCO 2014 val 30K
      config: unstated
      args: {num_samples: 30000, assumed: coco30k-bksdm}
    metrics:
    - {type: fid, value: 17.7266}
  - task: {type: text-to-image}
    dataset: {type: coco-2014, name: MS-COCO 2014 val 5K, config: unstated, args: {num_samples: 5000}}
    metrics:
    - {type: fid, value: 23.0478}
sdbench:
  checkpoint: nota-ai/bk-sdm-small@25230d9acc2121ed7ac95470910da031944b339a
  base: stable-diffusion-v1-4
  baseline: stable-diffusion-v1-4
  architecture: bk-sdm-small
  size:
    unet: {exact: 482346884, published: 0.490e+9}
    text_encoder: {exact: 123060480}
    image_decoder: {exact: 49490179}
    whole: {exact: 654897543, published: 0.66e+9}
  compute: {unet_macs: 255.4e+9}
  speed: {unet_ratio: {max: 0.75, source: own record, reason: fewer blocks}}
  memory: {peak_bytes: {max: 2.5e+9, device: NVIDIA A100}}
  protocols: [scenes-quick]
  margins: {fid: 0.45, coco30k-bksdm: {clip_score: 0.0008}}
  sources: {unstated: record sheet}
  records:
  - protocol: scenes-quick
    metric: fid
    value: 12.3456
    standard_error: 0.21
    n: 512
    protocol_fingerprint: "0123456789abcdef"
    checkpoint_fingerprint: "fedcba9876543210"
    device: cpu
    versions: {python: "3.11.7", torch: "2.15.0"}
    date: 2026-11-22
---

# Student of something

Body.
"""


def write(folder: Path, text: str = CARD, name: str = "student.md") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path
