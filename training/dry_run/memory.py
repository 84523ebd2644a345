"""Estimate the GPU memory and the disk space that a run takes."""

from __future__ import annotations

from dataclasses import dataclass

from training.dry_run.activations import text_activations, unet_activations
from training.dry_run.networks import Blueprint, Configs
from training.recipes.schema import Recipe


@dataclass(frozen=True)
class Amount:
    """One part of an estimate."""

    label: str
    bytes: int
    note: str = ""


def memory(recipe: Recipe, plan: Blueprint, micro_batch: int, owners: int = 1) -> list[Amount]:
    """Return what one process keeps on its device while it computes ``micro_batch`` images.

    What learns is shared by so many ``owners`` (FSDP2): each keeps its part. Weights, gradients, moments and
    average are exact; activations are counted layer by layer by ``training.dry_run.activations``. Not
    counted: what is alive for a moment only, workspaces, gaps of the allocator.
    """
    half = recipe.precision != "fp32"
    frozen_bytes = 2 if half else 4
    trained, follower = -(-plan.parameters("learns") // owners), plan.parameters("average")
    frozen = [network for network in plan.networks if network.role == "frozen" and network.resident]
    learned, of = -(-plan.learned // owners), "float32" if owners == 1 else f"float32, a part in {owners}"
    parts = [
        Amount("weights", 4 * trained, of),
        Amount("gradients", 4 * learned, of),
        Amount("moments of AdamW", 8 * learned, f"{of}, two for each parameter that learns"),
    ]
    if half:
        parts.insert(1, Amount("their 16-bit copies", 2 * trained, "kept by autocast through a micro-batch"))
    if recipe.ema is not None:
        parts.append(Amount("moving average", 4 * learned, of))
    if follower:
        parts.append(Amount("target network", 4 * follower, "float32"))
    if frozen:
        names = ", ".join(network.name for network in frozen)
        size = frozen_bytes * sum(network.parameters for network in frozen)
        parts.append(Amount("frozen networks", size, f"{names}; {8 * frozen_bytes} bits"))
    if plan.teacher is not None:
        parts += _activations(recipe, plan, plan.teacher, micro_batch, half)
    return parts


def disk(recipe: Recipe, plan: Blueprint) -> list[Amount]:
    """Return what a run leaves on disk; of a cache of unknown length, what a thousand pairs take."""
    average = 4 if recipe.ema is not None else 0
    state = (12 + average) * plan.learned + 4 * plan.parameters("average")
    parts = [
        Amount("state of the run", 2 * state, "weights, moments, averages; two, while one replaces the other")
    ]
    if plan.teacher is not None and recipe.data.cache:
        parts += _cache(recipe, plan.teacher)
    exported = ("U-Net",) if recipe.export.unet_only else ("U-Net", "text encoder", "VAE")
    width = 2 if recipe.export.half else 4
    whole = [network for network in plan.networks if network.name in exported or plan.teacher is None]
    names = ", ".join(network.name for network in whole)
    size = width * sum(network.parameters for network in whole)
    parts.append(Amount("export", size, f"{names}; {8 * width} bits"))
    return parts


def latent_shape(recipe: Recipe, configs: Configs) -> tuple[int, int, int]:
    """Return channels, height and width of the latents that are trained on."""
    channels = int(configs.vae.get("latent_channels", 4))
    shrink = 2 ** (len(configs.vae["block_out_channels"]) - 1)
    pixels = getattr(recipe.data, "close_up", None) or recipe.data.resolution
    side = pixels // shrink if pixels else configs.unet.get("sample_size") or 64
    height, width = (side, side) if isinstance(side, int) else side
    return channels, int(height), int(width)


def text_shape(configs: Configs) -> tuple[int, int]:
    """Return the length of a caption in tokens, and the width of a text state."""
    text = configs.text_encoder
    return int(text.get("max_position_embeddings", 77)), int(text.get("hidden_size", 512))


def _activations(
    recipe: Recipe, plan: Blueprint, configs: Configs, micro_batch: int, half: bool
) -> list[Amount]:
    objective, student = recipe.objective, plan.student
    assert student is not None
    checkpointing = recipe.speed.gradient_checkpointing
    taps: list[str] = []
    if objective.kind == "distillation" and objective.weights.feature:
        from training.students.feature_taps import feature_pairs

        taps = [mine for _, mine in feature_pairs(objective.pairing, recipe.student.remove)]
    prior = objective.kind == "dreambooth" and objective.prior_weight > 0
    batch = micro_batch * (2 if prior else 1)
    tokens, _ = text_shape(configs)
    counted = unet_activations(
        student,
        batch=batch,
        latent=latent_shape(recipe, configs)[1:],
        tokens=tokens,
        half=half,
        checkpointing=checkpointing,
        watched=taps,
    )
    images = f"{batch} images" if batch > 1 else "1 image"
    note = f"estimate for {images}, attention by a fused kernel"
    if checkpointing:
        note = f"estimate for {images}, checkpointed: inputs of blocks and one block's own"
    largest = counted.largest if checkpointing else 0
    parts = [Amount("activations", counted.kept + largest, note)]
    if getattr(objective, "train_text_encoder", False):
        text = text_activations(configs.text_encoder, batch=batch, tokens=tokens, half=half)
        parts.append(Amount("activations of the text encoder", text.kept, "estimate"))
    if taps:
        # The student's are among its activations; the teacher's, and float32 versions of both, are not.
        size = (2 + 4 + 4 if half else 4) * counted.features
        parts.append(Amount("features compared", size, f"{len(taps)} pairs, in float32"))
    return parts


def _cache(recipe: Recipe, configs: Configs) -> list[Amount]:
    data, (tokens, states) = recipe.data, text_shape(configs)
    channels, height, width = latent_shape(recipe, configs)
    pairs = data.pairs or 1000
    of = "" if data.pairs else ", for every 1,000 pairs"
    sides = 2 if data.flip else 1
    latents = pairs * (sides * 2 * channels * height * width * 2 + 4 * tokens)
    mirrored = ", also mirrored" if data.flip else ""
    parts = [
        Amount("latents", latents, f"float16 mean and deviation, {channels}x{height}x{width}{mirrored}{of}")
    ]
    if data.cache_text:
        note = f"float16, {tokens}x{states}; equal captions are kept once{of}"
        parts.append(Amount("text states, at most", pairs * tokens * states * 2, note))
    return parts
