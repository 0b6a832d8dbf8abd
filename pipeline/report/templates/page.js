// Tables: a click on a heading sorts, and a filterable table gets a search box and a list for each column to choose from.
const content = cell => cell.dataset.value ?? cell.textContent.trim();
const number = text => text === "inf" ? Infinity : Number(text);

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [content(row.cells[column]), row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");  // no value stays last
        const [x, y] = [number(a), number(b)];
        return sign * (isNaN(x) || isNaN(y) ? a.localeCompare(b, undefined, {numeric: true}) : x < y ? -1 : x > y ? 1 : 0);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function makeFilterable(table) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  const form = document.createElement("form"), search = document.createElement("input"), count = document.createElement("output");
  const labelled = (text, field) => {
    const label = document.createElement("label");
    label.append(`${text} `, field);
    form.append(label, " ");
  };
  search.type = "search";
  labelled("find", search);
  const choices = heads.map((head, column) => {
    if (!("choose" in head.dataset)) return null;
    const values = [...new Set(rows.map(row => content(row.cells[column])))].sort((a, b) => a.localeCompare(b, undefined, {numeric: true}));
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...values.map(value => new Option(value, `=${value}`)));
    labelled(head.textContent, select);
    return select;
  });
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    for (const row of rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted) ||
        choices.some((select, column) => select?.value && select.value !== `=${content(row.cells[column])}`);
    count.value = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  form.className = "bar filters";
  form.append(count);
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  table.parentElement.before(form);
  filter();
}

document.querySelectorAll("table.filterable").forEach(makeFilterable);  // first: sorting wraps the headings in buttons
document.querySelectorAll("table.sortable").forEach(makeSortable);
