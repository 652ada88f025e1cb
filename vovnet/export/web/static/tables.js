// Counts, and the tables of `vovnet predict`: counts.csv and detections.csv, with the same columns.

/** Return the number of detections of each category (by its position) with a score of at least a threshold. */
export function countsOf(detections, categories, threshold) {
  const counts = categories.map(() => 0);
  for (const one of detections) if (one.score >= threshold) counts[one.category.position]++;
  return counts;
}

/** Return the text of counts.csv: a row for each image and category, also with 0. */
export function countsTable(images, categories, threshold) {
  const rows = images.flatMap((image) => {
    const counts = countsOf(image.detections, categories, threshold);
    return categories.map((category, position) => [image.name, category.name, counts[position]]);
  });
  return csv([["image", "category", "count"], ...rows]);
}

/** Return the text of detections.csv: all detections, best first, whatever the threshold is. */
export function detectionsTable(images) {
  const columns = ["image", "category_id", "category", "score", "x", "y", "width", "height"];
  const rows = images.flatMap((image) =>
    image.detections.map(({category, score, box}) => [image.name, category.id, category.name, score, ...box])
  );
  return csv([columns, ...rows]);
}

function csv(rows) {
  return rows.map((row) => row.map(cell).join(",") + "\n").join("");
}

function cell(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Let the browser save a text as a file. */
export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
