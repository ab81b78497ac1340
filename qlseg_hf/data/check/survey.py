"""Look at a whole data set before training on it: every image is read once, and all is said that follows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...model.image_processing_qlseg import QLSegImageProcessor
from ...utils.text import printable
from ..bands import BandStatistics, BandSums
from ..datasets import Sample, listed, open_dataset
from .counting import MOST_COLORS, Finding, is_region, is_smoothed, labels_of, tally_colors, tally_values
from .labels import LabelReport, read_findings, report_on_labels
from .rules import Rules, decide_rules
from .suggestions import rare_labels, suggest_class_weights, suggest_crop_size

NUM_GROUPS = 3  # of duplicates that a sentence names
USES = {"training": "trained on", "validation": "validated on"}


@dataclass
class DataRequest:
    """What to look at, and what is known of it.

    `data`: folder or Hub id. `reading`: keywords of `open_dataset`. `label_names`: of the labels, in order; None where
    nobody has named them. `rules`: those of `do_reduce_labels`, `ignore_index` and `label_map` that someone has set.
    `processor`: of a model that goes on from here, whose rules hold; nothing is decided then. `doubts_are_errors`,
    `strict`: see `report_on_labels`. `weighs_labels`: whether `class_weights` was set to "auto".
    `patch_size`: of the encoder, pixels. `num_channels`: bands to read the images with; what is found if not given.
    `reads_all_splits`: whether splits that are neither trained nor validated on are read too.
    """

    data: str
    train_split: str = "train"
    eval_split: str = "validation"
    reading: dict[str, Any] = field(default_factory=dict)
    label_names: list[str] | None = None
    rules: dict[str, Any] = field(default_factory=dict)
    processor: QLSegImageProcessor | None = None
    doubts_are_errors: bool = False
    strict: bool = False
    weighs_labels: bool = False
    patch_size: int = 16
    num_channels: int | None = None
    num_threads: int = 4
    reads_all_splits: bool = True

    @property
    def picture_reading(self) -> dict[str, Any]:
        """See `Sample.read_picture`."""
        if self.processor is not None:
            return self.processor.settings().reading
        return {"num_channels": self.num_channels, "keep_values": self.num_channels not in (None, 1, 3)}


@dataclass
class Group:
    """Images of equal content. `places`: (split, name) of each. `differs`: whether their label maps differ."""

    places: list[tuple[str, str]]
    differs: bool

    @property
    def splits(self) -> list[str]:
        return sorted({split for split, _ in self.places})


@dataclass
class Survey:
    """What is in a data set and what follows from it.

    `splits`: {name: samples}; `uses`: {"training" or "validation": name of its split}; `findings`: {name of the split:
    of each sample}; `rules`: names and settings, given and decided; `reports`: {use: of its labels}. `band_sums`:
    {(number of bands, type): of the training images}. `colors`: {(r, g, b): (pixels, label maps)} of colour masks
    without `label_colors`, the most frequent first. `problems` stop training, `warnings` should be read, `notes` say
    what was found and decided; sentences.
    """

    request: DataRequest
    layout: str
    description: str
    splits: dict[str, Sequence[Sample]]
    uses: dict[str, str]
    findings: dict[str, list[Finding]]
    rules: Rules
    processor: QLSegImageProcessor
    reports: dict[str, LabelReport]
    band_sums: dict[tuple[int, str], BandSums]
    duplicates: list[Group] = field(default_factory=list)
    colors: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    rare: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[Finding]:
        """Of the samples that are trained or validated on."""
        return [finding for split in dict.fromkeys(self.uses.values()) for finding in self.findings[split]]

    @property
    def training(self) -> list[Finding]:
        return self.findings[self.uses["training"]]

    @property
    def sizes(self) -> Counter:
        """(height, width): number of images, of all splits."""
        return Counter(found.size for findings in self.findings.values() for found in findings if found.size)

    @property
    def label_counts(self) -> np.ndarray:
        """(K,) pixels of each label, of the samples that are trained or validated on."""
        return sum_over(self, lambda report: report.label_counts)

    @property
    def num_ignored(self) -> int:
        return int(sum_over(self, lambda report: report.num_ignored))

    @property
    def images_of_labels(self) -> list[int]:
        """How many images hold each label."""
        return count_images(self.used, self.processor, len(self.rules.names))

    @property
    def stored_values(self) -> list[list[int]]:
        """Of each label the stored values that become it."""
        stored = np.array(sorted(tally_values(self.used, None, 0)), dtype=np.int64)
        found: list[list[int]] = [[] for _ in self.rules.names]
        for value, label in zip(stored.tolist(), labels_of(stored, self.processor).tolist()):
            if 0 <= label < len(found) and label != self.processor.ignore_index:
                found[label].append(value)
        return found

    @property
    def class_weights(self) -> dict[str, float]:
        """Suggested, by name."""
        counts = self.reports["training"].label_counts.tolist()
        return suggest_class_weights(dict(zip(self.rules.names, counts)))

    @property
    def crop_size(self) -> int:
        """Suggested, pixels."""
        return suggest_crop_size([found.size for found in self.training if found.size], self.request.patch_size)

    @property
    def unreadable(self) -> list[tuple[str, str, str]]:
        """(split, name, reason) of each sample that cannot be used."""
        return [
            (split, found.name, str(found.error))
            for split, findings in self.findings.items()
            for found in findings
            if found.error is not None
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """The label rules as keys of a recipe, the plain ones too: a model that training starts from has its own."""
        if self.rules.is_open:
            return {}
        names = ("do_reduce_labels", "ignore_index", "label_map")
        values = {key: getattr(self.processor, key) for key in names}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def bands(self) -> BandStatistics | None:
        """Of the training images; None if none can be read or they differ in their bands."""
        return next(iter(self.band_sums.values())).statistics() if len(self.band_sums) == 1 else None

    def text(self) -> str:
        """The report for a terminal."""
        lines = [printable(self.description), *(f"note: {printable(text)}" for text in self.notes)]
        lines += [f"error: {printable(text)}" for text in self.problems if not self.is_in_a_report(text)]
        lines += [f"{use} data:\n{report}" for use, report in self.reports.items()]
        lines += [f"warning: {printable(text)}" for text in self.warnings if not self.is_in_a_report(text)]
        return "\n".join(lines)

    def is_in_a_report(self, text: str) -> bool:
        """Whether a sentence is shown with the labels of a split."""
        return any(text.endswith(said) for report in self.reports.values() for said in report.errors + report.warnings)

    @property
    def can_train(self) -> bool:
        return not self.problems


def sum_over(survey: Survey, what):
    """Sum over the splits in use, each counted once."""
    reports = {survey.uses[use]: report for use, report in survey.reports.items()}
    return sum(what(report) for report in reports.values())


def count_images(findings: list[Finding], processor: QLSegImageProcessor, num_labels: int) -> list[int]:
    """How many of the label maps hold each label."""
    images = [0] * num_labels
    for found in findings:
        if found.stored is not None:
            for label in set(labels_of(found.stored.values, processor).tolist()) - {processor.ignore_index}:
                if 0 <= label < num_labels:
                    images[label] += 1
    return images


def survey_data(request: DataRequest, show_progress: bool = True) -> Survey:
    """Read every image and label map of a data set once and say what follows.

    Raises:
        ValueError, FileNotFoundError: the data set cannot be opened; see `open_dataset`.
    """
    opened = {
        "training": open_dataset(request.data, request.train_split, **request.reading),
        "validation": open_dataset(request.data, request.eval_split, **request.reading),
    }
    uses = {use: samples.split for use, samples in opened.items()}
    layout = getattr(opened["training"], "layout", None)
    splits = {samples.split: samples for samples in opened.values()}
    if layout is not None and request.reads_all_splits:
        splits |= {name: samples for name, samples in layout.splits.items() if name not in splits}
    processor = request.processor
    reading = request.picture_reading
    findings, sums = {}, {}
    for name, samples in splits.items():
        findings[name] = read_findings(samples, None, request.num_threads, reading, f"reading {name}", show_progress)
        sums[name] = take_bands(findings[name])
    rules = rules_of(request, layout, [found for split in dict.fromkeys(uses.values()) for found in findings[split]])
    processor = processor or rules.make_processor()
    reports = {
        use: report_on_labels(
            findings[split],
            processor,
            rules.names,
            strict=request.strict or use == "validation",
            doubts_are_errors=request.doubts_are_errors,
        )
        for use, split in uses.items()
    }
    for use, samples in opened.items():
        if request.processor is None and rules.settings.get("label_map") != request.rules.get("label_map"):
            reports[use].warnings = [t for t in reports[use].warnings if not t.startswith("label_map translates")]
        reports[use].warnings += getattr(samples, "notes", [])
    counts = ", ".join(f"{name} {len(found)}" for name, found in findings.items())
    survey = Survey(
        request,
        getattr(layout, "name", "unknown"),
        getattr(layout, "description", f"{request.data}: {counts}"),
        splits,
        uses,
        findings,
        rules,
        processor,
        reports,
        sums[uses["training"]],
    )
    add_sentences(survey, list(getattr(layout, "notes", [])))
    return survey


def rules_of(request: DataRequest, layout, used: list[Finding]) -> Rules:
    """Names and settings: those that are given, then those of the layout, then what the values say."""
    names, given = request.label_names, dict(request.rules)
    if request.processor is not None:
        return Rules(list(names or []), given)
    if layout is not None:
        names = list(layout.label_names) if names is None and layout.label_names else names
        for key in ("ignore_index", "label_map"):
            if getattr(layout, key) is not None:
                given.setdefault(key, getattr(layout, key))
    return decide_rules(used, names, given)


def add_sentences(survey: Survey, notes: list[str]) -> None:
    """Problems, warnings and notes, each said once and the gravest first."""
    survey.colors = colors_in(survey)
    survey.duplicates = find_duplicates(survey.findings)
    training = survey.reports["training"]
    images = count_images(survey.training, survey.processor, len(survey.rules.names))
    survey.rare = rare_labels(survey.rules.names, training.label_counts, images, len(survey.training))
    problems = [f"the data set cannot be trained on: {text}" for text in survey.rules.problems]
    for use, report in survey.reports.items():
        problems += [f"the data set cannot be {USES[use]}: {text}" for text in report.errors]
    survey.problems = list(dict.fromkeys([*problems, *band_problems(survey)]))
    survey.warnings = [f"{use}: {text}" for use, report in survey.reports.items() for text in report.warnings]
    survey.warnings += duplicate_warnings(survey)
    if survey.rare:
        texts = listed([f"{name!r} ({how})" for name, how in survey.rare.items()])
        survey.warnings.append(f"too rare to learn: {texts}; add images that show them, or take these labels out")
    survey.notes = list(dict.fromkeys([*notes, *survey.rules.notes, *color_notes(survey)]))
    if not survey.rules.are_named:  # a table of names that are values says nothing
        for report in survey.reports.values():
            report.readings = ""


def color_notes(survey: Survey) -> list[str]:
    """The sentence on colours of masks."""
    total = sum(pixels for pixels, _ in survey.colors.values())
    colors = [f"[{r}, {g}, {b}] {pixels / total:.1%}" for (r, g, b), (pixels, _) in survey.colors.items()]
    if not colors:
        return []
    many = "; so many come of photographs, smoothing, or numbers of objects" if len(colors) >= MOST_COLORS else ""
    return [
        f"label maps hold {len(colors)} colours: {listed(colors)}{many}; --output DIR writes DIR/label_colors.yaml, "
        "where each gets the name of its label"
    ]


def take_bands(findings: list[Finding]) -> dict[tuple[int, str], BandSums]:
    """Sums over the images of each number and type of bands; those of the single images are dropped."""
    sums: dict[tuple[int, str], BandSums] = {}
    for found in findings:
        if found.bands is not None and found.kind is not None:
            sums.setdefault(found.kind, BandSums()).merge(found.bands)
            found.bands = None
    return sums


def band_problems(survey: Survey) -> list[str]:
    """The sentence on images of different bands."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for found in survey.used:
        if found.kind is not None:
            kinds.setdefault(found.kind, []).append(found.name)
    if len(kinds) < 2:
        return []
    texts = [f"{len(names)} of {count} bands, {kind} ({names[0]})" for (count, kind), names in kinds.items()]
    return [f"the data set cannot be trained on: images differ in their bands: {'; '.join(texts)}; store all alike"]


def find_duplicates(findings: dict[str, list[Finding]]) -> list[Group]:
    """Groups of images of equal content, those across splits first, the largest first."""
    places: dict[bytes, list[tuple[str, Finding]]] = {}
    for split, found_in_split in findings.items():
        for found in found_in_split:
            if found.picture_digest is not None:
                places.setdefault(found.picture_digest, []).append((split, found))
    groups = [
        Group(
            [(split, found.name) for split, found in equal],
            len({found.label_digest for _, found in equal if found.label_digest}) > 1,
        )
        for equal in places.values()
        if len(equal) > 1
    ]
    return sorted(groups, key=lambda group: (-len(group.splits), -len(group.places)))


def duplicate_warnings(survey: Survey) -> list[str]:
    """Sentences on images that are there twice."""

    def named(groups: list[Group], with_split: bool) -> str:
        texts = [
            " = ".join(f"{split}: {name}" if with_split else name for split, name in group.places[:3])
            for group in groups[:NUM_GROUPS]
        ]
        return "; ".join(texts) + (f"; and {len(groups) - NUM_GROUPS} more" if len(groups) > NUM_GROUPS else "")

    leaks = [group for group in survey.duplicates if len(group.splits) > 1]
    inside = [group for group in survey.duplicates if len(group.splits) == 1]
    torn = [group for group in survey.duplicates if group.differs]
    sentences, total = [], sum(map(len, survey.findings.values()))
    if leaks:
        sentences.append(
            f"{len(leaks)} of {total} images are in more than one split, so scores will be too good: "
            f"{named(leaks, True)}; keep each in one split"
        )
    if inside:
        more = sum(len(group.places) - 1 for group in inside)
        sentences.append(f"{more} of {total} images repeat others of their split: {named(inside, False)}")
    if torn:
        sentences.append(
            f"{len(torn)} of {total} images are there several times with different label maps: {named(torn, True)}; "
            "keep the right one"
        )
    return sentences


def colors_in(survey: Survey) -> dict[tuple[int, int, int], tuple[int, int]]:
    """{(r, g, b): (pixels, label maps)} of colour masks, most frequent first, without those along edges alone."""
    tallies = tally_colors(survey.used)
    regions = [color for color, tally in tallies.items() if is_region(tally)]
    if is_smoothed(tallies, tallies, len(regions)):
        tallies = {color: tallies[color] for color in regions}
    order = sorted(tallies, key=lambda color: -tallies[color].num_pixels)
    return {
        (color >> 16, color >> 8 & 255, color & 255): (tallies[color].num_pixels, len(tallies[color].names))
        for color in order
    }


__all__ = ["DataRequest", "Group", "Survey", "survey_data"]
