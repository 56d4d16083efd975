"""Numbers of the pages on trainings: each is one of the committed numbers of a figure, rounded."""

import json
import re

import numpy as np
import pytest
import xarray as xr

from lrdyn.core import chance
from lrdyn.studies.adapter_training import few_shot
from lrdyn.verification.stating.claims import STILL_MOVING, standard_error
from lrdyn.verification.storing import results_file
from paper_figs import BASELINES, fig01_networks, fig07_few_shot, fig08_ranks, paired
from tests.runs import ROOT

PAGE = (ROOT / "docs/studies.md").read_text()
ADAPTERS = (ROOT / "docs/records/adapters.md").read_text()
TRAININGS = (ROOT / "docs/records/trainings.md").read_text()
FINDINGS = (ROOT / "docs/findings.md").read_text()
FIGURES = {"fig07": fig07_few_shot.differences, "fig08": fig08_ranks.changes}
METHODS = {
    "LoRA, A ~ N(0, 1)": "lora_unit",
    "LoRA, N(0, 1/d)": "lora",
    "Deep LoRA": "deep_lora",
    "two small factors": "two_factors",
    "LoRA+, ratio 4": "lora_plus_4",
    "ratio 16": "lora_plus_16",
    "full": "full",
}
PUBLISHED_GAINS = [
    few_shot.PUBLISHED["deep_lora"][n] - few_shot.PUBLISHED["lora_unit"][n] for n in (16, 64, 256)
]
RATES = {"best of each r": "own", "best of r = 8": "first"}


def numbers(name):
    return results_file.load(BASELINES / f"{name}.nc")["/"]


def table(text):
    """The first table of a text: titles, and the cells of each row."""
    lines = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return rows[0], rows[2:]


def table_behind(page, words):
    """The first table behind some words of a page, which stand there once."""
    assert page.count(words) == 1, words
    return table(page.partition(words)[2])


def short(number, digits=3):
    return f"{number:.{digits}f}"


def between(array, digits):
    """Least and largest number of an array, or both in one where they read alike."""
    ends = dict.fromkeys(short(float(end), digits) for end in (array.min(), array.max()))
    return " to ".join(ends)


def cell(seeds):
    """Mean and standard error, as a table has them."""
    return f"{short(float(seeds.mean()))} ({short(float(standard_error(np.asarray(seeds))))})"


def count(text):
    return int(text.replace(",", ""))


@pytest.mark.parametrize(
    ("task", "title"),
    [
        ("sentiment", "Sentiment of tweets with MiniLM, r = 8"),
        ("similarity", "The same for similarity of pairs (STS-B)"),
    ],
)
def test_the_tables_of_figure_7(task, title):
    drawn = numbers("fig07").sel(task=task)
    titles, rows = table_behind(ADAPTERS, title)
    assert titles == ["n", "frozen ridge", *METHODS]
    assert [count(row[0]) for row in rows] == drawn.examples.values.tolist()
    for n, ridge, *cells in rows:
        at = drawn.sel(examples=count(n))
        assert ridge == cell(at.ridge.values), n
        wanted = [cell(at.pearson.sel(adapter=name).values) for name in METHODS.values()]
        assert cells == wanted, n


TABLES_OF_RANKS = {
    "sentiment": "Figure 8, sentences over the rank",
    "similarity": "Figure 8, the same for pairs",
}


@pytest.mark.parametrize("task", TABLES_OF_RANKS)
def test_the_tables_of_figure_8(task):
    drawn = numbers("fig08").sel(task=task)
    titles, rows = table_behind(ADAPTERS, TABLES_OF_RANKS[task])
    ranks = [int(title.removeprefix("r = ")) for title in titles[3:]]
    assert ranks == drawn["rank"].values.tolist()
    assert (
        len(rows) == drawn.sizes["examples"] * drawn.sizes["adapter"] * drawn.sizes["kind_of_rate"]
    )
    for n, method, rate, *cells in rows:
        at = drawn.sel(examples=count(n), kind_of_rate=RATES[rate], adapter=METHODS[method])
        assert cells == [cell(at.pearson.sel(rank=r).values) for r in ranks], (n, method, rate)


def test_all_tasks_have_their_tables():
    assert {*numbers("fig08").task.values.tolist()} == {*TABLES_OF_RANKS}


def intervals(name):
    """Task and label -> the interval of a difference, as a table has it: bold without 0."""
    in_tasks = paired.compare_in_tasks(numbers(name), FIGURES[name])
    return {
        (task, one.label): marked(one.low, one.high)
        for task, compared in in_tasks.items()
        for one in compared
    }


def marked(low, high):
    """An interval, in bold type if it does not hold 0."""
    return f"**{signed(low, high)}**" if low > 0 or high < 0 else signed(low, high)


def signed(low, high):
    return " to ".join(f"{end:+.3f}" for end in (low, high))


TASKS = {"sentences": "sentiment", "pairs": "similarity"}


@pytest.mark.parametrize(
    ("name", "title", "words"),
    [("fig07", "Differences of Figure 7, of", 1), ("fig08", "Changes in Figure 8 from", 2)],
)
def test_the_tables_of_intervals(name, title, words):
    """Of a row the first words are its label, then comes the task, then a cell for each n."""
    titles, rows = table_behind(ADAPTERS, title)
    examples = titles[words + 1 :]
    found = {
        (TASKS[row[words]], ", ".join([*row[:words], n.replace(",", "")])): cell
        for row in rows
        for n, cell in zip(examples, row[words + 1 :], strict=True)
    }
    assert found == intervals(name)


@pytest.mark.parametrize(
    ("name", "title", "above", "below"),
    [
        ("fig07", "**Few examples** (Figure 7", "ahead", "behind"),
        ("fig08", "**The rank** (Figure 8)", "up", "down"),
    ],
)
def test_the_tables_in_words_say_which_intervals_hold_no_0(name, title, above, below):
    """Of each row and task: at which n an interval lies on which side of 0, and no others."""
    titles, rows = table_behind(PAGE, title)
    words = titles.index("sentences")
    said = {
        (task, ", ".join([*row[:words], n.replace(",", "")])): word
        for row in rows
        for task, cell in zip(TASKS.values(), row[words:], strict=True)
        for word, at in re.findall(r"(\w+) at ([\d, ]+)", cell)
        for n in (f"n = {n}" for n in at.split(", "))
    }
    told = {
        key: below if interval.startswith("**-") else above
        for key, interval in intervals(name).items()
        if interval.startswith("**")
    }
    assert said == told
    assert {", ".join(row[:words]) for row in rows} == {
        label.rpartition(", n = ")[0] for _, label in intervals(name)
    }


def test_what_the_seeds_would_show_is_a_share_of_the_interval():
    compared = [
        one
        for name in FIGURES
        for found in paired.compare_in_tasks(numbers(name), FIGURES[name]).values()
        for one in found
    ]
    shares = {short(one.least / (one.high - one.low), 2) for one in compared}
    (share,) = shares
    assert_said(ADAPTERS, f"A difference of {share} of the interval's length")
    assert_said(ADAPTERS, f"{paired.held_at_once(1)} intervals hold simultaneously")
    assert_said(PAGE, f"{paired.held_at_once(1)} simultaneous intervals")


@pytest.mark.parametrize("name", FIGURES)
def test_the_verdict_has_the_intervals_of_the_figure(name):
    """The record of the run and the figure say the same of every difference."""
    compared = paired.compare_in_tasks(numbers(name), FIGURES[name])
    drawn = sorted(
        (round(one.low, 6), round(one.high, 6)) for found in compared.values() for one in found
    )
    decided = [one["interval"] for one in findings(name).values() if one["interval"]]
    assert sorted((round(low, 6), round(high, 6)) for low, high in decided) == drawn


@pytest.mark.parametrize("name", FIGURES)
def test_each_rate_is_bracketed_among_those_that_were_tried(name):
    """Five or more were tried, and worse ones lie on both sides of the best."""
    drawn = numbers(name)
    chosen = drawn["rate" if name == "fig07" else "best_rate"]
    axes = chosen.dims
    tried = drawn.tried.transpose(*axes, "candidate").values
    scores = drawn.tried_pearson.transpose(*axes, "candidate", "rate_seed").values.mean(axis=-1)
    for place in np.ndindex(chosen.shape):
        known = np.isfinite(tried[place])
        rates, reached = tried[place][known], scores[place][known]
        best = int(np.argmax(reached))
        assert len(rates) >= 5
        assert 0 < best < len(rates) - 1
        assert rates[best] == chosen.values[place]


def trainings(figure):
    """What the record has in its column of trainings for a figure: sentences, then pairs."""
    titles, rows = table_behind(TRAININGS, "## Trainings, dates and time")
    assert titles[0] == "figure"
    mine = [row for row in rows if row[0] == figure]
    assert ["sentences" in mine[0][1], "for pairs" in mine[1][1]] == [True, True]
    return [row[titles.index("trainings")] for row in mine]


def test_the_numbers_of_trainings():
    """Of each task: four seeds at each rate that was tried, and thirty that are reported."""
    counts = []
    for task in TASKS.values():
        drawn = numbers("fig07").sel(task=task)
        rates = int(np.isfinite(drawn.tried.values).sum()) * drawn.sizes["rate_seed"]
        reported = drawn.sizes["adapter"] * drawn.sizes["examples"] * drawn.sizes["seed"]
        counts.append(f"{rates + reported:,}")
    assert trainings("7") == counts


def findings(name):
    """Findings of the committed record of a figure."""
    (run,) = json.loads((BASELINES / f"{name}_record.json").read_text()).values()
    claims = run["verdict"]["claims"]
    return {one["id"]: one["finding"] for one in claims if one["kind"] == "finding"}


def assert_said(page, text):
    assert " ".join(text.split()) in " ".join(page.split())


def test_figure_1_in_words():
    drawn = numbers("fig01_networks")
    names, rank = [str(name) for name in drawn.trained.values], int(drawn.attrs["rank"])
    _, rows = table_behind(PAGE, "At the last step of the first command (the appendix of Figure 1)")
    assert [row[0] for row in rows] == [fig01_networks.TITLES[name] for name in names]
    said = {}
    for name, row in zip(names, rows, strict=True):
        network, end = drawn.sel(network=name), drawn.sel(trained=name)
        shape = int(network["rows"]), int(network["columns"])
        values = network.singular_value.values[np.isfinite(network.step.values)][-1]
        ratio, by_chance = values[rank] / values[rank - 1], chance.gaussian_ratio(*shape, rank)
        share, of_gaussian = float(end.share), short(chance.gaussian_energy(*shape, rank), 2)
        said[name] = short(share, DIGITS[name]), of_gaussian
        assert row[1:] == [
            f"{shape[0]} x {shape[1]}",
            str(int(end.seeds)),
            short(float(network.accuracy), 2),
            f"{short(share, 4)} ({of_gaussian})",
            f"{short(ratio, 2)} ({short(by_chance, 2)})",
            f"{float(end.effective_rank):.1f} ({chance.gaussian_effective_rank(*shape):.1f})",
        ]
    titles, over_time = table_behind(PAGE, "Their share:")
    assert titles == [
        *("network", "first record", "last record"),
        *("shuffled labels", "true labels, after as many steps"),
    ]
    shown = []
    for name in names:
        shares = drawn.share_over_steps.sel(network=name).values
        first, last = (short(share, 2) for share in shares[np.isfinite(shares)][[0, -1]])
        _, *labels = fig01_networks.shuffled_share(drawn, name)
        equal_steps = (short(share, DIGITS[name]) for share in labels)
        shown.append([fig01_networks.TITLES[name], first, last, *equal_steps])
    assert over_time == shown
    shares = (
        "{} of the squared update in a deep linear network, {} in a perceptron, {} in a VGG, "
        "{} in a ResNet, {} in a small vision transformer (a Gaussian matrix: {}, {}, {}, {}, {})"
    )
    assert_said(FINDINGS, shares.format(*(said[n][i] for i in (0, 1) for n in names)))


def test_what_labels_decide_in_words():
    """In Figure 1: energies outside 2K, ranks and R of the perceptron; R under Adam."""
    last = numbers("fig01").isel(level=-1)
    true, shuffled = (float(last.outside_2K.sel(labelling=name)) for name in ("true", "shuffled"))
    assert_said(
        FINDINGS,
        f"{true:.3f} on true labels and {shuffled:.3f} on shuffled ones, "
        f"{shuffled / true:.1f} times as much",
    )
    ranks = [float(last["rank"].sel(labelling=name)) for name in ("true", "shuffled")]
    assert_said(
        FINDINGS,
        "{:.0f} on true labels, {:.0f} on shuffled ones, {:.0f} in a Gaussian matrix".format(
            *ranks, float(last.gaussian_rank)
        ),
    )
    found = findings("fig01")
    for cell in ("base", "adam"):
        part = found[f"{cell}_part_at_0.01"]
        low, high = (f"{end:.2f}" for end in part["interval"])
        joint = " (" if cell == "base" else ", "
        assert_said(FINDINGS, f"R = {part['value']:.2f}{joint}{low} to {high}")


DIGITS = {"dln": 4, "mlp": 3, "vgg": 2, "resnet": 2, "vit": 2}


KINDS = ("activations", "balanced")


def is_at_rest(finding):
    return finding["outcome"] != STILL_MOVING


def test_figure_2_in_words():
    found = findings("fig02")
    ranks, by = {}, {}
    for network in ("dln", "resnet", "mlp"):
        for kind in KINDS:
            rank, drop = (found[f"{network}_{kind}_{what}"] for what in ("rank", "drop"))
            ranks[network, kind] = f"{rank['value'] + drop['value']:.1f} to {rank['value']:.1f}"
            low, high = sorted(map(abs, drop["interval"]))
            by[network, kind] = f"{low:.1f} to {high:.1f}"
    for network, title in (("dln", "linear network"), ("mlp", "perceptron"), ("resnet", "ResNet")):
        cells = (f"{ranks[network, kind]} ({by[network, kind]})" for kind in KINDS)
        assert f"| {title} | {' | '.join(cells)} |" in PAGE
    rested = {id for id, finding in found.items() if "_drop" in id and is_at_rest(finding)}
    assert rested == {"mlp_balanced_drop"}
    with_it, without = (short(found[f"resnet_{of}quality"]["value"], 2) for of in ("", "plain_"))
    assert_said(PAGE, f"reaches an accuracy of {with_it} with dropout and {without} without")


def with_spread(finding):
    return f"{finding['value']:.1f} ({finding['spread']:.1f})"


def test_the_table_of_figure_4():
    found = findings("fig04")
    titles, rows = table_behind(ADAPTERS, "## Figure 4: which singular values move")
    assert titles == ["", "gradient descent", "Adam"]
    said = {
        "the product that end 10 % or more from their start, of 384": "moved",
        "angle of their right vectors": "angle",
        "values of the value matrix": "value_moved",
        "less that for a random update": "value_chance",
    }
    for (words, *cells), (named, what) in zip(rows, said.items(), strict=True):
        assert named in words
        found_ends = (found[f"evolution_{what}_{rule}"] for rule in ("sgd", "adam"))
        assert cells == [with_spread(finding) for finding in found_ends], words
    drawn = numbers("fig04")
    ends = drawn.value_right_angle.sel(rule="adam").isel(step=-1).dropna("curve")
    assert ends.curve.values[0] == 1
    assert (ends.curve.values[1:] > 378).all()
    first, *others = ends.values
    random = chance.direction_angle(int(drawn.width), int(drawn.frame))
    assert_said(
        ADAPTERS,
        f"""its right vector ends at {first:.0f} degrees to the frame. The others are among the last
        six values, at {min(others):.0f} to {max(others):.0f} degrees (95 % of random directions:
        {float(random.low):.0f} to {float(random.high):.0f}).""",
    )
    least, most = (100 * float(end) for end in (drawn.gap[..., -1].min(), drawn.gap[..., -1].max()))
    assert_said(ADAPTERS, f"{least:.0f} to {most:.0f} % of their motion is outside it")


def test_the_table_of_figure_5():
    drawn, found = numbers("fig05"), findings("fig05")
    tried = drawn.tried_pearson.mean("rate_seed")

    def reached(name, rate):
        """Mean over the seeds on which rates are chosen."""
        of_method = drawn.tried.sel(adapter=name).values
        (place,) = np.flatnonzero(np.isclose(of_method, rate, rtol=0.1))
        return short(float(tried.sel(adapter=name).isel(candidate=place)), 2)

    titles, rows = table_behind(ADAPTERS, "## Figure 5: the factors under LoRA+")
    assert titles == [
        *("method", "best rate", "A grows by a factor", "lead over LoRA", "least training loss"),
        *("at 1e-4", "at 3e-4", "at 0.001", "at the best rate"),
    ]
    expected = []
    for name, title, of_rate, of_length in (
        ("lora", "LoRA", 2, 1),
        ("lora_plus_4", "LoRA+, ratio 4", 2, 1),
        ("lora_plus_16", "LoRA+, ratio 16", 3, 2),
    ):
        lead = "-" if name == "lora" else signed(*found[f"factors_{name}_ahead"]["interval"])
        loss = float(drawn.tried_loss.sel(adapter=name).mean("rate_seed").min())
        expected.append(
            [
                title,
                short(float(drawn.rate.sel(adapter=name)), of_rate),
                f"{found[f'factors_A_{name}']['value']:.{of_length}f}",
                lead,
                f"{loss:.0e}".replace("e-0", "e-"),
                *(reached(name, rate) for rate in (1e-4, 3.16e-4, 1e-3)),
                short(float(tried.sel(adapter=name).max()), 2),
            ]
        )
    assert rows == expected
    assert_said(
        ADAPTERS,
        f"""From 0.001 to 0.03 LoRA rises from {reached("lora", 1e-3)} to
        {reached("lora", 0.0316)}.""",
    )


def test_the_table_of_ranks_of_figure_7():
    drawn = numbers("fig07")
    used = drawn.energy_rank.mean("seed")
    _, rows = table_behind(ADAPTERS, "Ranks of the updates.")
    assert rows == [
        [
            title,
            *(between(drawn.moved.sel(task=task, adapter=name), 2) for task in TASKS.values()),
            between(used.sel(adapter=name), 1),
            "384" if name == "full" else "8",
        ]
        for title, name in METHODS.items()
    ]
    others = [name for name in METHODS.values() if name != "deep_lora"]
    assert bool((drawn.moved.sel(adapter=others) == 1).all())
    by_chance = sorted({f"{rank:.0f}" for rank in drawn.random_rank.values.ravel()}, key=float)
    assert_said(
        ADAPTERS,
        f"""A random product of two such factors needs {by_chance[0]} values, a Gaussian matrix
        {by_chance[1]}.""",
    )


def mean_difference(name, task, label):
    """Mean over the seeds of one comparison of a figure."""
    return float(FIGURES[name](numbers(name).sel(task=task))[label].mean())


def test_every_finding_has_its_size_and_its_seeds():
    titles, rows = table(FINDINGS)
    place = titles.index("shown by")
    assert all(re.search(r"\d", row[place]) and "seed" in row[place] for row in rows)


def test_figures_1_and_10_in_the_table_of_findings():
    """A ratio at its steps, and how far a penalty is above its bound at the last one."""
    drawn = numbers("fig01_networks").sel(network="dln").isel(point=slice(1, None))
    spectra = drawn.singular_value.transpose("point", "index").values
    ratios = dict(
        zip(drawn.step.values.ravel().tolist(), spectra[:, 20] / spectra[:, 0], strict=True)
    )
    last = max(ratios)
    assert_said(
        FINDINGS,
        f"sigma_21 / sigma_1 = {ratios[2000]:.2e} at step 2,000 and {ratios[last]:.2e} at step "
        f"{last:,.0f}, where it still rises",
    )
    above = [
        results_file.load(folder / "fig10.nc")["/"].ratio.sel(mask="input").isel(step=-1).values
        for folder in (BASELINES, BASELINES / "paper")
    ]
    assert_said(FINDINGS, f"(in Figure 10 {np.min(above):.3f} to {np.max(above):.2f})")
    assert_said(FINDINGS, f"{np.min(above):.3f} to 1.13 times the bound")


def test_figure_7_in_the_table_of_findings():
    """The means that the committed verdict has are those of the committed numbers."""

    def ahead(task, start, n):
        return f"{mean_difference('fig07', task, f'Deep LoRA less LoRA, {start}, n = {n}'):.2f}"

    pairs = [ahead("similarity", "N(0, 1)", n) for n in (16, 64, 256)]
    texts = [ahead("sentiment", "N(0, 1)", n) for n in (64, 256)]
    source = [f"{by:.2f}" for by in PUBLISHED_GAINS]
    assert source[0] == pairs[0]
    assert_said(
        FINDINGS,
        f"""on STS-B by {pairs[0]} in Pearson's correlation at n = 16, as there, and by {pairs[1]}
        and {pairs[2]} at 64 and 256 (source: {source[1]}, {source[2]}); on sentiment by {texts[0]}
        and {texts[1]} at 64 and 256, and not told at 16 and 1,024. Against the usual start,
        N(0, 1/d), it is ahead by {ahead("similarity", "N(0, 1/d)", 16)} on STS-B at n = 16""",
    )


def test_figure_8_in_the_table_of_findings():
    told = intervals("fig08")

    def by(method, task, n):
        label = f"{method}, one rate, n = {n}"
        assert told[task, label].startswith("**")
        return f"{mean_difference('fig08', task, label):.2f}"

    at_16 = [told[task, label] for task, label in told if label.endswith("one rate, n = 16")]
    assert not any(words.startswith("**") for words in at_16)
    gain = by("LoRA, N(0, 1)", "sentiment", 64)
    loss, of_pairs = (by("LoRA, N(0, 1/d)", task, 64) for task in ("sentiment", "similarity"))
    assert_said(
        FINDINGS,
        f"""LoRA from N(0, 1) gains {gain} on sentiment, LoRA from N(0, 1/d) changes by {loss} there
        and {of_pairs} on STS-B, Deep LoRA by {by("Deep LoRA", "sentiment", 64)} on sentiment.""",
    )
    own = {key for key, words in told.items() if "own rates" in key[1] and words.startswith("**")}
    assert own == {
        ("sentiment", "LoRA, N(0, 1), own rates, n = 16"),
        ("sentiment", "LoRA, N(0, 1), own rates, n = 64"),
        ("similarity", "LoRA, N(0, 1), own rates, n = 64"),
    }


def test_the_numbers_of_trainings_of_figure_8():
    """Besides those at the first rank, which are Figure 7's."""
    counts = []
    for task in TASKS.values():
        drawn = numbers("fig08").sel(task=task)
        tried = np.isfinite(drawn.tried).sum("candidate") * drawn.sizes["rate_seed"]
        kept = drawn.best_rate == drawn.best_rate.sel(rank=drawn.attrs["first"])
        every = tried + drawn.sizes["seed"] * xr.where(kept, 1, 2)
        beside = int(every.sum() - every.sel(rank=drawn.attrs["first"]).sum())
        counts.append(f"{beside:,} besides those of 7")
    assert trainings("8") == counts
