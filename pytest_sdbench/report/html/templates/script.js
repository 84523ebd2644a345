"use strict";
(() => {
  const form = document.querySelector(".filter");
  if (form) {
    const claims = [...document.querySelectorAll(".claims tbody")];
    const show = () => {
      const asked = [...form.querySelectorAll("select")].filter((each) => each.value);
      let shown = 0;
      for (const claim of claims) {
        claim.hidden = !asked.every((each) => claim.dataset[each.name] === each.value);
        shown += !claim.hidden;
      }
      form.querySelector("output").textContent = asked.length ? `${shown} of ${claims.length}` : "";
    };
    form.hidden = false;
    form.addEventListener("input", show);
    form.addEventListener("reset", () => setTimeout(show));
    form.addEventListener("submit", (event) => event.preventDefault());
    // A link to a claim that is filtered away shows it.
    addEventListener("hashchange", () => {
      if (document.querySelector(":target[hidden]")) form.reset();
    });
  }
  const modes = document.querySelector(".modes");
  if (modes && document.querySelector("#pictures .stage img + img")) {
    const section = document.querySelector("#pictures");
    const ranges = [...section.querySelectorAll("input[type=range]")];
    modes.hidden = false;
    modes.addEventListener("input", (event) => {
      section.dataset.mode = event.target.value;
      for (const range of ranges) range.hidden = event.target.value !== "slider";
    });
    for (const range of ranges) {
      range.addEventListener("input", () => {
        range.parentElement.style.setProperty("--at", `${range.value}%`);
      });
    }
  }
})();
