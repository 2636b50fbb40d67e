"use strict";
// The tables sort and filter (DataTables); dark is what the reader's system asks for.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();
addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.sortable")) {
    new DataTable(table, {
      autoWidth: false, info: false, order: [], paging: false,
      language: { search: "Filter", zeroRecords: "No row has that." },
    });
  }
});
