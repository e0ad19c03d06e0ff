"""kill -9 at random moments and the same command again: the end must be that of an undisturbed run.

    python tests/benchmarks/kills.py
    python tests/benchmarks/kills.py --kinds run,methods,teacher --kills 25 --seed 0

For each kind the command runs once undisturbed: the reference. A trial is a fresh directory (at the
same path, with the same teacher) in which the command is started, killed, started again and killed
again, up to six times, and then left to finish. Every file that counts must equal the reference's
bit for bit, times aside: history, metrics, predictions, weights, the last state, cached logits.

Half of the moments are drawn uniformly over the time from the command's first write to its end, so
that the start of Python is not what is killed. The other half are things that happen to a file (the
n-th time that the temporary `last.npz` is created, written to or renamed), told by inotify: a poll
would take the processor from the command and miss files that live for a millisecond.

Importing TensorFlow takes five seconds, so two processes import it, do nothing with it, and fork a
child per command. That is safe as long as nothing was computed: no thread of TensorFlow runs yet.
There are two, with different hash seeds and used in turn, because children of one process agree in
things (the order of sets, fresh random states) in which a real second start differs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import io
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 300.0  # seconds after which a command is taken to hang
MOST_KILLS = 6  # of a trial
KINDS = ("run", "methods", "sweep", "joint", "teacher", "cache")
TIMES = {"timings", "seconds", "train_seconds", "examples_per_second", "written"}
DATED = "/origin/teacher/sha256"  # in a cache's manifest: a .keras file holds its date of saving
# Neither results nor state: logs, locks, Hydra's notes, and the table that sweep.json repeats.
UNIMPORTANT = re.compile(r"(^|/)(\.hydra|tensorboard|latest|kd\.log|sweep\.csv)(/|$)|\.lock$")
Event = tuple[str, str]  # what happened, to which sort of file: ("rename", "best-#.npz")


class Zygote:
    """A process that has imported TensorFlow and forks a child per command, one at a time."""

    def __init__(self, hash_seed: int) -> None:
        import kd_cli

        unset = ("TFDS_DATA_DIR", "KD_CACHE_DIR", "HYDRA_FULL_ERROR")
        env = {key: value for key, value in os.environ.items() if key not in unset}
        env |= {
            "PYTHONPATH": str(Path(kd_cli.__file__).parents[1]),
            "PYTHONHASHSEED": str(hash_seed),
            "KERAS_BACKEND": "tensorflow",
            "OPENBLAS_NUM_THREADS": "1",  # the import of NumPy would start threads
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--zygote"],
            **pipes, bufsize=0, env=env, start_new_session=True,
        )  # fmt: skip
        self.out = self.process.stdout
        self.pid: int | None = None  # of a child whose end has not been read

    def start(self, words: list[str], cwd: Path, log: Path) -> None:
        self.process.stdin.write(json.dumps([words, str(cwd), str(log)]).encode() + b"\n")
        self.pid = int(self.out.readline())  # nothing to read: the imports have failed

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """The child's exit code, or minus the signal that ended it; waits for it."""
        code, self.pid = int(self.out.readline()), None
        return code

    def close(self) -> None:
        if self.pid is not None:
            self.kill()
        self.process.communicate()


@contextlib.contextmanager
def zygotes() -> Iterator[Iterator[Zygote]]:
    """Two zygotes, in turn for ever."""
    with contextlib.ExitStack() as stack:
        pair = [Zygote(1), Zygote(2)]
        for zygote in pair:
            stack.callback(zygote.close)
        yield itertools.cycle(pair)


def serve() -> None:
    """The zygote: reads commands; writes each child's id, and then how it ended."""
    import hydra  # noqa: F401
    import keras  # noqa: F401
    import tensorflow  # noqa: F401

    pid = 0
    for line in sys.stdin:
        if pid:
            # Only now: a reaped id could be given to another process, and that one be killed.
            os.waitpid(pid, 0)
        pid = os.fork()
        if pid == 0:
            _be_kd(*json.loads(line))
        print(pid, flush=True)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print(ended.si_status * (1 if ended.si_code == os.CLD_EXITED else -1), flush=True)


def _be_kd(words: list[str], cwd: str, log: str) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        from kd_cli import cli

        code = cli.main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Watch:
    """What happens to the files below a folder, while it happens (Linux's inotify)."""

    VERBS = {0x100: "create", 0x2: "write", 0x80: "rename", 0x200: "delete"}
    FOLDER = 0x40000000

    def __init__(self, folder: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self.folders: dict[int, Path] = {}
        list(self._add(folder))

    def _add(self, folder: Path) -> Iterator[Event]:
        """Watches a folder and those in it; what is in a new one was created before the watch."""
        number = self.libc.inotify_add_watch(self.fd, os.fsencode(folder), sum(self.VERBS))
        self.folders[number] = folder
        with contextlib.suppress(FileNotFoundError):  # a folder can vanish again
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._add(folder / entry.name)
                else:
                    yield "create", _sort(f"{folder}/{entry.name}")

    def events(self) -> Iterator[Event]:
        """All since the last call; a file that does not count has the name ''."""
        data, at = b"", 0
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, 65536)
        while at < len(data):
            number, mask, _, length = struct.unpack_from("iIII", data, at)
            at += 16 + length
            path = self.folders[number] / os.fsdecode(data[at - length : at].rstrip(b"\0"))
            verb = self.VERBS.get(mask & sum(self.VERBS))
            if verb and not mask & self.FOLDER:
                yield verb, _sort(str(path))
            elif verb in ("create", "rename"):
                yield from self._add(path)


def _sort(path: str) -> str:
    """`best-#.npz` for `state/.tmp-123-best-7.npz`; '' for a file that does not count."""
    name = re.sub(r"^\.tmp-\d+(@\w+)?-", "", path.rsplit("/", 1)[-1])
    return "" if UNIMPORTANT.search(path) else re.sub(r"\d+", "#", name)


@dataclass(frozen=True)
class Moment:
    """When to kill: `seconds` after the first write, or when `event` has happened `times` times."""

    seconds: float = LIMIT
    event: Event | None = None
    times: int = 0


@dataclass
class Ending:
    """How a command ended, what happened to files, and its seconds from the first write on."""

    code: int = 0
    killed: bool = False
    seconds: float = 0.0
    events: Counter[Event] = field(default_factory=Counter)


def command(zygote: Zygote, words: list[str], work: Path, moment: Moment | None = None) -> Ending:
    """Types a command in `work` and kills it at the moment, unless it ends before."""
    watch, ending, moment = Watch(work), Ending(), moment or Moment()
    begun, first = time.monotonic(), None
    zygote.start(words, work, work.with_name("command.log"))
    try:
        while True:
            until = begun + LIMIT if first is None else first + moment.seconds
            wait = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([zygote.out, watch.fd], [], [], wait)
            for event in watch.events():
                first = first or time.monotonic()
                ending.events[event] += 1
            if zygote.out in ready:
                break
            happened = moment.event and ending.events[moment.event] >= moment.times
            if happened or time.monotonic() >= until:
                zygote.kill()
                break
    finally:
        os.close(watch.fd)
    ending.code, now = zygote.end(), time.monotonic()
    ending.seconds = now - (first or now)
    ending.killed = ending.code == -signal.SIGKILL and now - begun < LIMIT
    return ending


@dataclass(frozen=True)
class Kind:
    """A command to be killed, one to type before it, and writes in which it must be killed."""

    words: list[str]
    before: list[str] | None
    hit: tuple[str, ...] = ("last.npz", "metrics.json")


def kind_of(name: str, folder: Path) -> Kind:
    """The commands of a kind, on data that are written into `folder`."""
    data = _quarters(folder / "quarters.npz", *((12000, 28) if name == "cache" else (3200, 8)))
    shared = ["dataset=npz", f"dataset.path={data}"]
    student = "student.network.dropout=0.3 optimizer=adamw schedule=cosine".split()
    student.append("checkpoint.minutes=0.0005")  # state in the middle of an epoch
    if name == "cache":
        shared += ["teacher=cnn", "teacher.training.steps=4"]
        words = [*shared, *student, "batch_size=256", "epochs=2"]
        before = ["train-teacher", *shared]
        return Kind(["distill", *words], before, (*Kind.hit, "partial.npy"))
    if name == "methods":  # banks, drawn negatives and a projector are part of the state
        shared += ["teacher=cnn", "teacher.training.steps=40"]
        words = [*shared, *student, "student=cnn", "batch_size=16", "epochs=4"]
        words += "loss=[hinton,crd,hint] loss.crd.negatives=32 loss.crd.dimensions=8".split()
        return Kind(["distill", *words], ["train-teacher", *shared])
    shared += ["teacher=mlp", "teacher.network.units=[16]", "teacher.training.epochs=6"]
    words = [*shared, *student, "epochs=8", "early_stopping.patience=2"]
    before = ["train-teacher", *shared]
    if name in ("run", "teacher"):
        # Epochs of a second or two: kd looks at the time twice a second.
        words = ["distill", *words, "student=cnn", "batch_size=4"]
        return Kind(words, before if name == "run" else None)
    words = ["--multirun", *words, "batch_size=8", "learning_rate=0.01"]
    if name == "joint":
        return Kind([*words, "alpha=0.1,0.9", "hydra/launcher=joint"], before)
    return Kind([*words, "alpha=0.1,0.9", "temperature=1,4"], before)


def _quarters(path: Path, count: int, side: int) -> Path:
    """Grey images of 4 classes, one quarter a little brighter; hard enough to stop early on."""
    generator, arrays = np.random.default_rng(5), {}
    for split, size in (("train", count), ("test", count // 10)):
        labels = np.arange(size) % 4
        corner = np.arange(side) // (side // 2)
        bright = 2 * corner[:, None] + corner == labels[:, None, None]
        images = generator.integers(0, 120, (size, side, side)) + 15 * bright
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **arrays)
    return path


def files(folder: Path) -> dict[str, Path]:
    """The files that count, by their path in the folder; no links, nothing temporary."""
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: path
        for name, path in found.items()
        if not (UNIMPORTANT.search(name) or path.is_symlink() or path.name.startswith(".tmp-"))
    }


def unfinished(folder: Path) -> dict[tuple[Path, int], str]:
    """Files whose writing did not end, with their time, and of which sort each is."""
    found = (p for p in folder.rglob("*") if p.name.startswith((".tmp-", "partial.")))
    return {(path, path.lstat().st_mtime_ns): _sort(str(path)) for path in found}


def compare(reference: Path, work: Path) -> list[str]:
    """What in a directory is not as in the reference, in words."""
    wanted, found = files(reference), files(work)
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} should not be there" for name in found if name not in wanted]
    for name in sorted(wanted.keys() & found.keys()):
        theirs, ours = _content(wanted[name]), _content(found[name])
        differing = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        if differing:
            key = differing[0]
            values = f"{theirs.get(key)} and now {ours.get(key)}"
            problems.append(f"{name}: {len(differing)} values, the first at '{key}': {values}")
    return problems


def _content(path: Path) -> dict[str, str]:
    """All that a file holds, times left out, as keys and values that can be compared."""
    if path.suffix == ".json":
        return _flat(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return _flat([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        if "record" in arrays:
            arrays["record"] = json.loads(str(arrays["record"]))
        return _flat(arrays)
    if path.suffix == ".keras":  # its config.json holds addresses of objects
        import h5py

        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read("model.weights.h5"))
        names: list[str] = []
        with h5py.File(weights) as file:
            file.visit(names.append)
            return _flat({n: file[n][()] for n in names if isinstance(file[n], h5py.Dataset)})
    return {"": hashlib.sha256(path.read_bytes()).hexdigest()[:12]}


def _flat(value: Any, where: str = "") -> dict[str, str]:
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inner = {f"{where}/{key}": inner for key, inner in pairs if key not in TIMES}
        flat = (_flat(value, place) for place, value in inner.items() if place != DATED)
        return {key: leaf for one in flat for key, leaf in one.items()}
    if isinstance(value, np.ndarray | np.generic):
        digest = hashlib.sha256(value.tobytes()).hexdigest()[:12]
        return {where: f"{value.dtype}{value.shape} {digest}"}
    return {where: repr(value)}  # 1, 1.0 and True are not the same here


@dataclass
class Report:
    """What the trials of a kind gave."""

    kind: str
    kills: int = 0
    trials: int = 0
    hits: Counter[str] = field(default_factory=Counter)  # kills during the write of this file
    left: int = 0  # temporary files that are there after the end
    mismatches: list[str] = field(default_factory=list)
    note: str = ""  # about the undisturbed run, or why there is none
    seconds: float = 0.0

    def __str__(self) -> str:
        hits = ", ".join(f"{name} {count}" for name, count in sorted(self.hits.items()))
        return (
            f"{self.kind}: {self.kills} kills in {self.trials} trials, {self.seconds:.0f} s\n"
            f"    undisturbed: {self.note}\n"
            f"    killed during the write of: {hits or 'nothing'}\n"
            f"    .tmp-* files left after the end: {self.left}\n"
            f"    mismatches: {len(self.mismatches)}"
        ) + "".join(f"\n      {problem}" for problem in self.mismatches)


def moments(chance: random.Random, reference: Ending, hit: tuple[str, ...]) -> Iterator[Moment]:
    """For ever: something that happens to a file, then a time; each sort of file in its turn."""
    others = sorted({name for _, name in reference.events} - {"", *hit})
    chance.shuffle(others)
    for number, name in enumerate(itertools.cycle([*hit, *others])):
        verbs = ("create", "write", "rename", "delete")[: 2 if number < len(hit) else 4]
        event = chance.choice([(v, name) for v in verbs if (v, name) in reference.events])
        # In the first third: a command that continues has fewer of them before it.
        yield Moment(event=event, times=1 + chance.randrange(-(-reference.events[event] // 3)))
        yield Moment(seconds=chance.uniform(0, reference.seconds))


def trial(
    kind: Kind, folder: Path, drawn: Iterator[Moment], kills: int, turn: Iterator[Zygote]
) -> Report:
    """Starts the command afresh and kills it up to `kills` times; then it may finish."""
    work, report = folder / "work", Report(folder.name, trials=1)
    shutil.copytree(folder / "start", work, symlinks=True)
    while True:
        before = unfinished(work)
        moment = next(drawn) if report.kills < kills else None
        ending = command(next(turn), kind.words, work, moment)
        if not ending.killed:
            break
        report.kills += 1
        after = unfinished(work)
        report.hits.update({after[path] for path in after.keys() - before.keys()})
    if ending.code == 0:
        report.mismatches = compare(folder / "reference", work)
    else:
        report.mismatches = [f"exit code {ending.code}: {_log(folder)}"]
    report.left = sum(path.name.startswith(".tmp-") for path, _ in unfinished(work))
    return report


def _log(folder: Path) -> str:
    return " | ".join((folder / "command.log").read_text().splitlines()[-5:])


def measure(name: str, kills: int, seed: int, folder: Path, turn: Iterator[Zygote]) -> Report:
    """Kills commands of a kind until there were `kills` real kills, in `folder`/`name`.

    Goes on up to twice as many, until the writes that `Kind.hit` names were among them.
    """
    begun, report, folder = time.monotonic(), Report(name), folder.resolve() / name
    work, reference = folder / "work", Ending()  # one path: some of what a run records is absolute
    work.mkdir(parents=True)
    kind = kind_of(name, folder)
    if kind.before:
        reference = command(next(turn), kind.before, work)
    shutil.copytree(work, folder / "start", symlinks=True)
    if reference.code == 0:
        reference = command(next(turn), kind.words, work)
    if reference.code != 0:
        raise RuntimeError(f"{name}: undisturbed, exit code {reference.code}: {_log(folder)}")
    if ("create", "partial.npy") not in reference.events and name == "cache":
        raise RuntimeError("cache: undisturbed, nothing was kept in outputs/cache/logits")
    os.rename(work, folder / "reference")
    ends = [json.loads(p.read_text()) for p in (folder / "reference").rglob("metrics.json")]
    said = ", ".join(f"{end['epochs_done']} epochs ({end['stopped']})" for end in ends)
    states = reference.events["rename", "last.npz"]
    report.note = f"{reference.seconds:.1f} s, {states} states; {said}"

    chance = random.Random(f"{seed} {name}")
    drawn = moments(chance, reference, kind.hit)
    while report.kills < kills or (report.kills < 2 * kills and not {*kind.hit} <= {*report.hits}):
        one = trial(kind, folder, drawn, chance.randint(2, MOST_KILLS), turn)
        report.trials += 1
        report.kills += one.kills
        report.hits += one.hits
        report.left += one.left
        if one.mismatches:
            kept = work.rename(folder / f"mismatch-{report.trials}")
            report.mismatches += [f"{kept}: {problem}" for problem in one.mismatches]
        else:
            shutil.rmtree(work)
    report.seconds = time.monotonic() - begun
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, with commas between")
    parser.add_argument("--kills", type=int, default=25, help="at least so many of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new one to work in and keep")
    parser.add_argument("--zygote", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.zygote:
        serve()
        return 0
    if unknown := {*given.kinds.split(",")} - {*KINDS}:
        parser.error(f"unknown kinds: {', '.join(sorted(unknown))}; expected {', '.join(KINDS)}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kd-kills-"))
    failed = False
    with zygotes() as turn:
        for name in given.kinds.split(","):
            report = measure(name, given.kills, given.seed, folder, turn)
            print(report, flush=True)
            failed = failed or bool(report.mismatches)
    if not given.folder and not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
