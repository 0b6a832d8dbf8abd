for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const value = text => text === "inf" ? Infinity : Number(text);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [key(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");  // no value stays last
        const [x, y] = [value(a), value(b)];
        return sign * (isNaN(x) || isNaN(y) ? a.localeCompare(b, undefined, {numeric: true}) : x < y ? -1 : x > y ? 1 : 0);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
