// What gradio leaves out: its divider has no keys, and a paste reaches only its own button.
() => {
  const find = (selector) => document.querySelector(selector);
  const divider = () => find("#slider [data-testid=slider]");

  const percent = (knob) => {
    const picture = knob.parentElement.getBoundingClientRect();
    const box = knob.getBoundingClientRect();
    return Math.round((100 * (box.left + box.width / 2 - picture.left)) / picture.width);
  };

  const describe = () => {
    const knob = divider();
    if (!knob || !knob.parentElement) return;
    if (!knob.hasAttribute("tabindex")) {
      knob.setAttribute("role", "slider");
      knob.setAttribute("tabindex", "0");
      knob.setAttribute("aria-label", "Divider between before and after");
      knob.setAttribute("aria-valuemin", "0");
      knob.setAttribute("aria-valuemax", "100");
    }
    const now = String(percent(knob));
    if (knob.getAttribute("aria-valuenow") !== now) knob.setAttribute("aria-valuenow", now);
  };

  const drag = (knob, distance) => {
    const box = knob.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    const fire = (target, kind, at) =>
      target.dispatchEvent(
        new MouseEvent(kind, { bubbles: true, cancelable: true, view: window, clientX: at, clientY: y }),
      );
    fire(knob, "mousedown", x);
    fire(window, "mousemove", x + distance);
    fire(window, "mouseup", x + distance);
  };

  document.addEventListener("keydown", (event) => {
    const knob = divider();
    if (!knob || event.target !== knob) return;
    const width = knob.parentElement.getBoundingClientRect().width;
    const steps = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    drag(knob, steps[event.key] * width);
    setTimeout(describe);
  });

  const choose = (file) => {
    const input = find("#photo input[type=file]");
    if (!input) return false;
    const files = new DataTransfer();
    files.items.add(file);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };

  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    event.stopPropagation();
    if (choose(file)) return;
    find("#photo button[aria-label=Clear]")?.click(); // another photo is there
    setTimeout(() => choose(file), 300);
  }, true);

  new MutationObserver(describe).observe(document.body, {
    attributes: true,
    attributeFilter: ["style"],
    childList: true,
    subtree: true,
  });
}
