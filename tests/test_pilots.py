"""scripts/scenes_pilots.py: on made-up accuracies the rules of docs/protocol.md choose what they must."""

import math
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import scenes_pilots as pilots  # noqa: E402
from scenes_pilots import Pilot, Setting  # noqa: E402


def world(best, gain=0.0, rates=(0.0, -1.0, -2.0)):
    """Accuracies of a world: `best(light, clutter)`, what a doubling gains, and what each rate costs."""
    asked = []

    def accuracy(pilot):
        asked.append(pilot)
        setting = pilot.setting
        doublings = math.log2(setting.epochs / pilots.LENGTHS[0])
        gained = sum(gain * 0.5**k for k in range(round(doublings)))  # each doubling gains half of the one before
        rate = rates[pilots.RATES.index(setting.rate)]
        return best(setting.light, setting.clutter) + gained + rate - {"bn": 1, "gn": 2, "sn": 0}[pilot.norm]

    return accuracy, asked


def test_the_first_candidate_that_is_neither_too_easy_nor_too_hard():
    accuracy, asked = world(lambda light, clutter: 100 - 8 * light - 2 * clutter)
    choice = pilots.choose(accuracy)
    assert choice.setting == Setting(0.25, 1, 0.05, 30)
    assert {p.setting.clutter for p in asked} == {0, 1}  # what comes behind it is never run
    assert all(p.seed in pilots.SEEDS for p in asked)


def test_light_counts_before_clutter():
    accuracy, _ = world(lambda light, clutter: 99 if light == 0.25 else 80 if clutter > 0 else 90)
    assert pilots.choose(accuracy).setting[:2] == (0.35, 0)


@pytest.mark.parametrize(("rates", "chosen"), [((0, 1, 0), 0.1), ((0, 1, 2), 0.2), ((3, 1, 2), 0.05)])
def test_the_rate_is_bns(rates, chosen):
    accuracy, asked = world(lambda light, clutter: 90, rates=rates)
    assert pilots.choose(accuracy).setting.rate == chosen
    assert {p.norm for p in asked if p.setting.rate != chosen} == {"bn"}


def test_a_length_that_starves_is_doubled_and_one_that_always_does_is_refused():
    accuracy, _ = world(lambda light, clutter: 90, gain=0.8)
    choice = pilots.choose(accuracy)
    assert choice.setting.epochs == 60 and choice.gains["gn"] == pytest.approx(0.4)
    accuracy, asked = world(lambda light, clutter: 86, gain=6)
    assert pilots.choose(accuracy) is None
    assert len({p.setting[:2] for p in asked if p.setting.epochs == 240}) == 15  # of every candidate


def test_no_candidate():
    accuracy, _ = world(lambda light, clutter: 99)
    assert pilots.choose(accuracy) is None


def test_a_settings_words_are_a_run_at_8x32():
    config = pilots.load(pilots.words(Pilot(Setting(0.25, 2, 0.1, 30), "sn", 100)))
    assert (config.batch, config.data["validation"], config.data["clutter"]) == ("8x32", "pilot", 2)
    assert config.optim["lr"] == 0.1 and config.epochs == 30


def test_errors_by_scenes_and_by_handwriting(tmp_path):
    """Every tenth digit always wrong, of four scenes each: the clusters are what is independent."""
    labels = pilots.handwriting("pilot")[1]
    rows = [
        f"{scene * len(labels) + digit},{(label + (digit % 10 == 0)) % 10}"
        for scene in range(4)
        for digit, label in enumerate(labels)
    ]
    (tmp_path / "predictions.csv").write_text("\n".join(["index,predicted", *rows]))
    by_scenes, by_handwriting = pilots.standard_errors(tmp_path / "predictions.csv")
    wrong = len(labels[::10]) / len(labels)
    assert by_scenes == pytest.approx(100 * math.sqrt(wrong * (1 - wrong) / (4 * len(labels))))
    assert by_handwriting == pytest.approx(100 * math.sqrt(wrong * (1 - wrong) / (len(labels) - 1)))


def test_seeds_grow_with_the_spread():
    numbers = [pilots.seeds_for(spread, 17) for spread in (0.05, 0.3, 0.5, 2)]
    assert numbers[0] == 3 and numbers[-1] == 8 and numbers == sorted(numbers) and numbers[1] < numbers[2]


def test_the_page_and_the_scale_are_what_the_pilots_say():
    known = pilots.Pilots(pilots.RECORDS, may_run=False)
    page = pilots.PAGE.read_text(encoding="utf-8")
    assert page == pilots.fill(page, "pilots", lambda name: pilots.part(known, name))
    choice = pilots.choose(known.accuracy)
    config = pilots.load(["scale=scenes", "tracker=none"])
    assert choice.setting == Setting(
        config.data["light"], config.data["clutter"], config.optim["lr"], int(config.epochs)
    )
    pilot = pilots.load(pilots.words(Pilot(choice.setting, "sn", 100)))
    changed = {"validation", "val_length"}
    assert {k: v for k, v in config.data.items() if k not in changed} == {
        k: v for k, v in pilot.data.items() if k not in changed
    }
    assert (config.model, config.optim, config.schedule) == (pilot.model, pilot.optim, pilot.schedule)
