import pytest

from tracelib.construction.rules.function_words import ENGLISH, FOREIGN
from tracelib.construction.rules.language import (
    find_few_english_words,
    find_foreign_letters,
    find_foreign_words,
    measure_english,
)
from tracelib.construction.rules.words import normalize_text

SAMPLES = {
    "German": "Das Bild zeigt einen Hund, der mit einem Ball auf dem Rasen spielt und müde ist.",
    "French": "Cette image montre un chien qui joue avec une balle dans le jardin.",
    "Spanish": "La imagen muestra un perro que juega con una pelota y está muy cansado.",
    "Italian": "Questo cane gioca con una palla nel giardino, che è anche molto grande.",
    "Portuguese": "O cão não está cansado, mais uma vez brinca em seu jardim.",
    "Dutch": "Deze hond speelt met een bal en wordt niet moe, maar het is ook voor zijn baas.",
    "Swedish": "Bilden visar en hund som inte är trött och leker på gräset, och det är varmt.",
    "Polish": "Ten pies nie jest zmęczony, a piłka, która się toczy, oraz trawa.",
    "Turkish": "Bu resimde top ile oynayan bir köpek ve için çimen olan bir bahçe var.",
    "Indonesian": "Gambar ini adalah anjing yang bermain dengan bola untuk anak.",
    "Vietnamese": "Đây là một con chó và quả bóng của nó.",
    "Finnish": "Kuvassa koira leikkii pallolla pihalla aurinkoisena kesäpäivänä.",
    "Czech": "Obrázek ukazuje psa, který si hraje s míčem na trávníku.",
}
PROSE = (
    "The dog in the picture is playing with a ball, and it looks tired.",
    "Because the request asks for a red one, only the colour of the car has to change.",
    "Terrier, small and white, held by a man in a hat; no leash to be seen.",
)


def count_violations(violations):
    return len(list(violations))


@pytest.mark.parametrize("language", SAMPLES)
def test_other_languages_are_found(language):
    text = SAMPLES[language]
    found = [*find_few_english_words(text, 0.15), *find_foreign_words(text, 1)]
    assert found


@pytest.mark.parametrize("text", PROSE)
def test_english_prose_passes(text):
    assert measure_english(text) > 0.3
    assert count_violations(find_few_english_words(text, 0.15)) == 0
    assert count_violations(find_foreign_words(text, 0)) == 0


@pytest.mark.parametrize(("num_english", "is_found"), [(2, True), (3, False), (4, False)])
def test_share_of_english_words_at_its_threshold(num_english, is_found):
    text = " ".join(["the"] * num_english + ["dog"] * (20 - num_english) + ["7"] * 5)
    assert measure_english(text) == num_english / 20
    assert count_violations(find_few_english_words(text, 0.15)) == is_found


@pytest.mark.parametrize("text", ["", "12 / 7", "?!"])
def test_no_words_are_no_english(text):
    assert measure_english(text) == 0
    assert count_violations(find_few_english_words(text, 0.01)) == 1
    assert count_violations(find_few_english_words(text, 0)) == 0


@pytest.mark.parametrize(("num_english", "is_found"), [(0, True), (1, True), (2, False)])
def test_surplus_of_foreign_words_at_its_threshold(num_english, is_found):
    text = " ".join(["und"] * 4 + ["the"] * num_english + ["Hund"] * 9)
    assert count_violations(find_foreign_words(text, 2)) == is_found


@pytest.mark.parametrize(
    "text", ["", "Œuvre ÆØÅ łódź ẽ ǎ ɐ ʻ", "½ 20 °C € → ★ 😀 5 µm 1º 2ª", "Cafe\u0301", "“–”…"]
)
def test_latin_letters_and_no_letters(text):
    assert count_violations(find_foreign_letters(text, 0)) == 0


@pytest.mark.parametrize("letter", "红あкאعα한ไक")
def test_letters_of_other_scripts_are_counted(letter):
    assert count_violations(find_foreign_letters(f"a {letter}b {letter}", 2)) == 0
    (violation,) = find_foreign_letters(f"a {letter}b {letter}", 1)
    assert violation.detail == f"2 letters are not Latin ({letter}{letter}), allowed are 1"


def test_lists_are_disjoint_and_written_as_words_are_compared():
    assert not ENGLISH & FOREIGN
    assert all(normalize_text(word) == word for word in ENGLISH | FOREIGN)
