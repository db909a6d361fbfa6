"use strict";
const cards = Array.from(document.querySelectorAll(".card"));
const fields = ["verdict", "dataset", "rule"].map((name) => document.getElementById(name));
const words = document.getElementById("words");
const shown = document.getElementById("shown");
const none = document.getElementById("none");

function filterCards() {
  const wanted = words.value.trim().toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = fields.every(
      (field) => !field.value || card.dataset[field.id].split(" ").includes(field.value),
    );
    card.hidden = !fits || !card.textContent.toLowerCase().includes(wanted);
    count += !card.hidden;
  }
  shown.textContent = `${count} of ${cards.length} samples`;
  none.hidden = count > 0;
}

for (const field of [...fields, words]) field.addEventListener("input", filterCards);
document.getElementById("reset").addEventListener("click", () => {
  for (const field of [...fields, words]) field.value = "";
  filterCards();
});
for (const button of document.querySelectorAll("[data-show-rule]")) {
  button.addEventListener("click", () => {
    for (const field of [...fields, words]) field.value = "";
    document.getElementById("rule").value = button.dataset.showRule;
    filterCards();
    document.querySelector(".filters").scrollIntoView();
  });
}
filterCards();
