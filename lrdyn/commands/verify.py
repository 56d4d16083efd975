"""The command line of every theorem."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import jax

from lrdyn.commands import printing
from lrdyn.commands import search as searches
from lrdyn.commands.arguments import (
    Example,
    Parser,
    add_cluster_flags,
    add_device_flags,
    add_flag,
    add_output_flags,
    check_cluster,
    integer_reader,
    parse_folder,
    parse_size,
    typed_command,
)
from lrdyn.commands.ending import Ending, Judged, Status, run
from lrdyn.figures import verdicts
from lrdyn.registry import REGISTRY
from lrdyn.system import whole_files
from lrdyn.system.printer import say
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.judging.rounding import MATMULS, PRECISIONS
from lrdyn.verification.machine import accelerators
from lrdyn.verification.machine.accelerators import slow_doubles
from lrdyn.verification.machine.device_defaults import ON_A_CPU, usual_memory
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.machine.process import setup
from lrdyn.verification.running.configuration import BadInput, Run, configure, defaults
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs.run_folder import carry_out, describe_run, judge_again
from lrdyn.verification.runs.verify import Verification, choose_precision
from lrdyn.verification.stating import mistakes, names_and_presets
from lrdyn.verification.stating.flags import flag_text, option_string
from lrdyn.verification.stating.statement import Experiment, Study


def parser_of(theorem: Experiment, prog: str = "") -> Parser:
    """The parser of a theorem's command line.

    Args:
        theorem: the theorem.
        prog: the command as one types it; the theorem's name by default.

    Raises:
        BadInput: the theorem's names or presets make no command.
    """
    names_and_presets.check_statement(theorem)
    prog = prog or theorem.name
    parser = Parser(prog, theorem.summary, examples=_examples(theorem, prog))
    usual = defaults(theorem)
    seeds = ", ".join(f"{s.seeds} for {s.id}" for s in theorem.scenarios)
    if usual["seeds"] is not None:
        seeds = str(usual["seeds"])
    add_run_flags(parser, usual, seeds=seeds, trains=isinstance(theorem, Study))
    if any(control.amounts for s in theorem.scenarios for control in s.controls):
        parser.add_argument(
            "--perturb", action="store_true", help="also sweep the distance from each hypothesis"
        )
    if theorem.has_claims:
        if not isinstance(theorem, Study):
            searches.add_search_flags(parser)
        _add_judging_flags(parser)
    if isinstance(theorem, Study):
        _add_training_flags(parser)
    parser.set_defaults(settings={})
    group = parser.add_argument_group("settings (several values make a sweep)")
    for flag in theorem.flags:
        try:
            add_flag(group, flag)
        except argparse.ArgumentError:  # another option has this name
            raise names_and_presets.taken_name(theorem, flag) from None
    return parser


def _add_judging_flags(parser: Parser) -> None:
    parser.add_argument(
        "--judge", metavar="FOLDER", help="judge saved results again, without a run"
    )
    parser.add_argument(
        "--changed",
        action="store_true",
        help="with --judge: also files that are not the run's; the verdict says so",
    )


def _parser_of_judging(prog: str) -> Parser:
    """What may stand beside ``--judge``: the settings of the run are saved."""
    parser = Parser(prog, "")
    _add_judging_flags(parser)
    _add_printing_flags(parser)
    return parser


def _add_printing_flags(parser: Parser) -> None:
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write report.html beside the results: one page with all of them",
    )
    printing.add_flags(parser)


def add_run_flags(
    parser: Parser, usual: Mapping[str, Any], *, seeds: str, trains: bool = False
) -> None:
    """Add the flags that every theorem and study has.

    Args:
        parser: takes them.
        usual: their defaults.
        seeds: how many seeds there are, in words.
        trains: whether it is a study.
    """
    add_output_flags(parser)
    parser.add_argument(
        "--seed",
        type=integer_reader("seed", 0),
        default=usual["seed"],
        help=f"first seed (default: {usual['seed']})",
    )
    parser.add_argument(
        "--seeds",
        type=integer_reader("seeds", 1),
        default=usual["seeds"],
        help=f"number of seeds (default: {seeds})",
    )
    both = (
        "float32 (default); identities run in both"
        if trains
        else "float64 (default, where a device has it) runs float32 beside it and compares"
    )
    parser.add_argument("--dtype", choices=PRECISIONS, help=both)
    parser.add_argument(
        "--precision",
        default=usual["precision"],
        choices=tuple(MATMULS),
        help="precision of the inputs of float32 matmuls (default: highest)",
    )
    parser.add_argument(
        "--memory",
        type=parse_size,
        metavar="SIZE",
        help="for the arrays of one part of a sweep (default: 1GiB; half of a GPU or TPU)",
    )
    parser.add_argument(
        "--lanes",
        type=integer_reader("lanes", 1),
        metavar="N",
        help="points of a sweep at a time on each device (default: as many as suit it)",
    )
    add_cluster_flags(parser)
    add_device_flags(parser)
    _add_printing_flags(parser)


def _examples(theorem: Experiment, prog: str) -> list[Example]:
    """Three command lines for its page of help."""
    swept = [flag for flag in theorem.flags if flag.swept and flag.quick]
    several = max(swept, key=lambda flag: len(flag.quick) > 1, default=None)
    examples = [Example(f"{prog} --seeds 4", "the quick settings, with four seeds")]
    if several:
        values = " ".join(map(flag_text, several.quick))
        examples.append(
            Example(f"{prog} {option_string(several.name)} {values}", "a sweep over these values")
        )
    if theorem.has_claims:
        again = f"{prog} --judge results/{theorem.name}/HASH"
        examples.append(Example(again, "judge saved results again, without a run"))
    more = Example(f"{prog} --preset paper --out mine", "the paper's settings, results in mine/")
    return [*examples[:2], *([] if len(examples) > 2 else [more]), *examples[2:]]


def _add_training_flags(parser: Parser) -> None:
    """Add the flags that all studies share."""
    parser.add_argument(
        "--data-dir",
        type=parse_folder,
        metavar="DIR",
        help="folder in which data sets are looked for first",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=integer_reader("checkpoint-every", 1),
        metavar="N",
        help="steps between two checkpoints (default: one every 30 s)",
    )


def lines_of(experiments: Sequence[Experiment]) -> list[str]:
    """One line for each experiment: its name and its summary."""
    width = max(18, 2 + max((len(experiment.name) for experiment in experiments), default=0))
    return [f"{experiment.name:{width}}{experiment.summary}" for experiment in experiments]


def flags_of(theorem: Experiment) -> set[str]:
    """Every flag of a theorem's command line, as it is typed: ``--seeds``."""
    return set(parser_of(theorem)._option_string_actions)


class VerifyCommand(NamedTuple):
    """A parsed command line."""

    run: Run
    options: argparse.Namespace


def parse(theorem: Experiment, argv: Sequence[str]) -> VerifyCommand:
    """Read a command line of a theorem, without the program's name.

    Raises:
        BadInput: an argument is unknown or outside its domain.
    """
    return _command(theorem, parser_of(theorem).parse(argv))


def _command(theorem: Experiment, options: argparse.Namespace) -> VerifyCommand:
    check_cluster(options)
    asked = {name: getattr(options, name, None) for name in defaults(theorem)}
    common = {n: d if asked[n] is None else asked[n] for n, d in defaults(theorem).items()}
    place = getattr(options, "data_dir", None) or ""
    run = configure(
        theorem, options.settings, common, memory=options.memory or ON_A_CPU, data_dir=place
    )
    return VerifyCommand(run, options)


def verify_command(
    command: VerifyCommand, *, host_devices: int | None = None, bar: bool = True
) -> tuple[Verification, Path]:
    """Run one theorem's command without printing; returns what :func:`carry_out` returns.

    Raises:
        BadInput: the data are missing, or no claim applies.
    """
    run, options = command
    theorem = run.experiment
    # Before the cluster: JAX takes the settings of its process at the first computation.
    machine = setup(run.dtype, host_devices=host_devices, host_only=options.cluster is not None)
    kept = kept_programs(theorem, machine)
    with _open_cluster(options, theorem.name if bar else "") as elsewhere:
        context = Context(
            memory=options.memory or usual_memory(jax.local_devices()[0]),
            lanes=options.lanes,
            store=Path(options.store) if options.store else None,
            every=getattr(options, "checkpoint_every", None),
            programs=kept and kept._replace(records=[]),
            machine=machine,
            elsewhere=elsewhere,
        )
        if options.dtype is None:
            run, why = choose_precision(run, context)
            if why:
                printing.remark(f"{theorem.name}: in float32. {why}", options)
        slow = slow_doubles(jax.local_devices()[0]) if run.dtype == "float64" else ""
        if slow and elsewhere is None:
            printing.remark(f"{theorem.name}: {slow}", options)
        if remark := describe_run(run):
            printing.remark(f"{theorem.name}: {remark}", options)
        return carry_out(run, options.out, draw=verdicts.draw, bar=bar, context=context)


@contextlib.contextmanager
def _open_cluster(options: argparse.Namespace, name: str) -> Iterator[Any]:
    """Connect to the cluster at an address, if there is one; with a name, print what it is."""
    if options.cluster is None:
        yield None
        return
    client = cluster_module()
    if name:
        client.warn_of_exposure(name, options.cluster)
    with client.open_cluster(options.cluster, options.cluster_security) as cluster:
        if name:
            printing.remark(f"{name}: {cluster.described()}", options)
        yield cluster


def cluster_module() -> Any:
    """The module that knows Dask.

    Raises:
        BadInput: Dask is not installed.
    """
    try:
        from lrdyn.verification.cluster import client
    except ModuleNotFoundError as error:
        wanted = "the extra 'cluster': pip install 'lrdyn[cluster]'"
        raise BadInput(f"--cluster: got no package {error.name!r}, wanted {wanted}") from None
    return client


def kept_programs(theorem: Experiment, machine: KeptPrograms | None) -> KeptPrograms | None:
    """Place of the compiled programs of a theorem; only those of the library have one."""
    if machine is None or not is_ours(theorem):
        return None
    return machine.of(REGISTRY[theorem.name].partition(":")[0])


def is_ours(theorem: Experiment) -> bool:
    """Whether a theorem is the library's own, so that this process may load its programs.

    One of somebody else may have the same name.
    """
    # By identity, for programs are found by name, and loading one executes it.
    return theorem.name in REGISTRY and resolve_name(REGISTRY[theorem.name]) is theorem


def run_deterministically(name: str, options: argparse.Namespace) -> None:
    """Apply ``--deterministic`` here and to processes started from here, and print it.

    Raises:
        BadInput: processes that were started elsewhere would have to do it.
    """
    if not options.deterministic:
        return
    if options.cluster and not options.cluster.startswith("local:"):
        flag = f"XLA_FLAGS={accelerators.DETERMINISTIC}"
        raise BadInput(f"--deterministic: got it beside --cluster, wanted {flag} at its workers")
    printing.remark(f"{name}: {accelerators.run_deterministically()}", options)


def main(theorem: Experiment, argv: Sequence[str] | None = None, *, prog: str = "") -> Status:
    """The command line of a theorem: ``sys.exit(main(theorem))``.

    Args:
        theorem: the theorem.
        argv: arguments without the program's name; those of the process by default.
        prog: the command as one types it, for its help.

    Returns:
        The exit status: 0 if every claim that applies holds and every control was seen to fail,
        1 if some claim is false, 2 for bad input, a mistake in the theorem's file, or if no claim
        applies, 3 for a fault of the machine, 4 if a claim that applies could not be judged, 130
        for Ctrl-C. 0, 1 and 4 are read from the verdict on disk: see :mod:`lrdyn.commands.ending`.
    """
    words = sys.argv[1:] if argv is None else argv
    typed_as = prog or (typed_command() if argv is None else "")

    def judged() -> Ending:
        # Only here does a user's own code run, so that only here can it be at fault.
        with mistakes.name_mistakes(mistakes.folders_of(theorem)):
            options = parser_of(theorem, typed_as).parse(words)
            if getattr(options, "judge", None) is not None:
                # Settings are those of the run: others beside them would not be those that were
                # judged.
                if _parser_of_judging(typed_as).parse_known_args(words)[1]:
                    wanted = "wanted none but --changed or --report: the settings are saved"
                    raise BadInput(f"--judge: got other arguments beside it, {wanted}")
                # Judging is NumPy: a card may stay with the processes that need it.
                setup("float64", host_only=True)
                path = Path(options.judge)
                verification, notes = judge_again(
                    theorem, path, verdicts.draw, changed=options.changed
                )
            elif getattr(options, "search", None) is not None:
                kept_by = partial(kept_programs, theorem)
                return searches.command(theorem, options, words, typed_as, kept_by)
            elif getattr(options, "beyond", False):
                raise BadInput("--beyond: got it alone, wanted --search N beside it")
            elif getattr(options, "changed", False):
                raise BadInput("--changed: got it alone, wanted --judge FOLDER beside it")
            else:
                command = _command(theorem, options)
                run_deterministically(theorem.name, options)
                (verification, path), notes = verify_command(command), []
            verdict, file = verification.verdict, path / whole_files.VERDICT
            changed = "changed: " if verdict["changed"] else ""
            came = verdict_text.word(verdict) if theorem.has_claims else "claims nothing"
            lines = printing.lines(
                verdict,
                options,
                last=f"{changed}{theorem.name} {came}: {path}",
                summary=theorem.summary,
                notes=[*verification.notes, *notes],
                file=str(file),
                theorem=theorem,
            )
            say("\n".join(lines))
            if options.report:
                from lrdyn.commands import report  # 0.2 s: pages of diagnoses, too

                printing.remark(f"report: {report.written(path, typed_as)}", options)
        # The file, not the verdict in memory: what a status says must stand on disk.
        return Judged(file, verdict["holds"], theorem.has_claims)

    return run(theorem.name, judged, own_process=argv is None)
