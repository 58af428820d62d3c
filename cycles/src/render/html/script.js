"use strict";
// The page works without its script, too: a failure must be visible to tests and to readers.
window.addEventListener("error", (event) => {
  document.documentElement.dataset.scriptError = String(event.message);
});
(() => {
  const source = document.getElementById("cycle-data");
  if (source === null) {
    document.documentElement.dataset.ready = "true";
    return;
  }
  const data = JSON.parse(source.textContent);
  const slider = document.getElementById("cycle");
  const number = document.getElementById("cycle-number");
  const readout = document.getElementById("readout");
  const areas = [...document.querySelectorAll(".area[data-cycles]")];

  // Thousands are separated as in the rest of the page.
  const ms = (value) =>
    value.toLocaleString("en", { maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2 }).replaceAll(",", "\u202f");

  // Names come from the report and are hostile: they are only set as text.
  const element = (tag, className, text) => {
    const created = document.createElement(tag);
    if (className) created.className = className;
    if (text !== undefined) created.textContent = text;
    return created;
  };

  const section = (title, total, names, durations) => {
    const table = element("table");
    const caption = element("caption", "", title);
    caption.append(" ", element("b", "", `${ms(total)} ${data.unit}`));
    table.append(caption);
    names.forEach(([name, paint], index) => {
      if (durations[index] === null) return;
      const row = table.insertRow();
      const head = element("th");
      head.scope = "row";
      head.append(element("i", "key block " + paint), name);
      row.append(head, element("td", "", ms(durations[index])));
    });
    return table;
  };

  const show = (cycle) => {
    const [resume, suspend, resumePhases, suspendPhases, attempts, vsocks, bytes] =
      data.cycles[cycle - 1];
    number.textContent = String(cycle);
    slider.value = String(cycle);
    slider.setAttribute("aria-valuetext", `cycle ${cycle}, resume ${ms(resume)} ${data.unit}`);
    const notes = [attempts];
    if (vsocks !== null) notes.push(`${vsocks} vsock sockets open in the guest`);
    if (bytes !== null) notes.push(`${ms(bytes / 1048576)} MiB written`);
    const list = element("ul");
    notes.forEach((note) => list.append(element("li", "", note)));
    readout.replaceChildren(
      section("resume", resume, data.resume, resumePhases),
      section("suspend", suspend, data.suspend, suspendPhases),
      list,
    );
    const left = (100 * (cycle - 0.5)) / data.cycles.length;
    areas.forEach((area) => {
      const cursor = area.querySelector(".cursor");
      cursor.hidden = false;
      cursor.style.left = `${left}%`;
    });
  };

  const showPointed = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const cycle = Math.floor(share * data.cycles.length) + 1;
    show(Math.min(Math.max(cycle, 1), data.cycles.length));
  };
  areas.forEach((area) => {
    area.addEventListener("pointermove", showPointed);
    area.addEventListener("pointerdown", showPointed);
  });
  slider.addEventListener("input", () => show(Number(slider.value)));
  document.querySelector(".explorer aside").hidden = false;
  show(data.cycles.length);
  document.documentElement.dataset.ready = "true";
})();
