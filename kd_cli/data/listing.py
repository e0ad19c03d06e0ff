"""What lies in a folder of images: splits, classes and images, and what is left out.

Nothing is opened but files whose names do not promise an image.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kd_cli.data.pictures import SUFFIXES, is_picture
from kd_cli.errors import ConfigError, suggest

# Folders of splits by their names, in any capitals.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
# What operating systems and git leave everywhere; nobody misses it.
_JUNK = frozenset(
    ".DS_Store .localized Thumbs.db desktop.ini .directory .gitkeep .gitignore".split()
)

# What a path can be, for one and for several.
Kind = tuple[str, str]
IMAGE: Kind = ("image", "images")
OTHER: Kind = ("file without an image", "files without an image")
HIDDEN: Kind = ("hidden file or folder", "hidden files and folders")
STRAY: Kind = ("image outside the class folders", "images outside the class folders")
EMPTY: Kind = ("class folder without images", "class folders without images")
ASIDE: Kind = ("folder beside the splits", "folders beside the splits")
LOOP: Kind = ("link back to a folder above it", "links back to a folder above them")
# These promise an image.
LINK: Kind = ("link that leads nowhere", "links that lead nowhere")
FOLDER: Kind = ("empty folder named as an image", "empty folders named as images")
SPECIAL: Kind = ("special file named as an image", "special files named as images")
BROKEN = (LINK, FOLDER, SPECIAL)


def plain(path: Path | str) -> str:
    """A path or name in one line of text: what can't be printed, or is no UTF-8, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def shortened(names: list[str]) -> str:
    """A few of the names in a line."""
    return ", ".join(map(plain, names[:3])) + (", ..." if len(names) > 3 else "")


@dataclass
class Left:
    """What is left out of a folder, by its kind."""

    root: Path
    paths: dict[Kind, set[Path]] = field(default_factory=dict)

    def add(self, kind: Kind, path: Path) -> None:
        self.paths.setdefault(kind, set()).add(path)

    def without(self, folder: Path) -> None:
        """Takes out a folder that is read after all, and those that it lies in."""
        for kind in (ASIDE, HIDDEN):
            paths = self.paths.pop(kind, set())
            if stay := {path for path in paths if not _holds(path, folder)}:
                self.paths[kind] = stay

    def notice(self) -> str:
        """All of it in a line, with a few names of each kind; empty where nothing is left out."""
        counted = []
        for kind, paths in self.paths.items():
            names = [str(path.relative_to(self.root)) for path in sorted(paths)]
            counted.append(f"{len(names)} {kind[len(names) > 1]} ({shortened(names)})")
        return f"{plain(self.root)}: left out {'; '.join(counted)}" if counted else ""


@dataclass(frozen=True)
class Layout:
    """How a folder of images is arranged.

    Attributes:
        root: The folder.
        parts: The folders of the splits, train and test at least; empty where kd draws them.
        named: The folder whose class folders name the classes.
        classes: The names of those that hold images, sorted.
        bare: Whether train/ holds images without class folders, which have no labels.
        left: What is left out of all these, so far.
    """

    root: Path
    parts: dict[str, Path]
    named: Path
    classes: list[str]
    bare: bool
    left: Left


def layout(root: Path) -> Layout:
    """Splits and classes of a folder of images.

    Raises:
        ConfigError: There is no such folder, a split is missing or there twice, or fewer than two
            class folders hold images.
    """
    if not root.is_dir():
        raise ConfigError(
            f"dataset.path={plain(root)} is not a folder; expected a folder of images"
        )
    left = Left(root)
    names = _folders(root, left)
    parts = _splits(root, names)
    for name in names if parts else ():
        if name.casefold() not in _SPLIT_OF:
            left.add(ASIDE, root / name)
    named, bare = parts.get("train", root), False
    classes = _filled(named, left)
    if parts and not classes and any(_direct_images(named)):
        named, bare = parts["test"], True
        classes = _filled(named, left)
    found = Layout(root, parts, named, classes, bare, left)
    if len(classes) < 2:
        raise ConfigError(_too_few(found))
    for folder in parts.values() or [root]:
        for path in _direct_images(folder) if folder != parts.get("train") or not bare else ():
            left.add(STRAY, path)
    return found


def doubt(found: Layout) -> str:
    """What is odd where the class folders hold the same folders, as splits of other names do."""
    folders = [found.named / name for name in found.classes]
    first = _folders(folders[0], Left(folders[0]))
    if len(first) < 2 or any(_folders(folder, Left(folder)) != first for folder in folders):
        return ""
    if any(any(_direct_images(folder)) for folder in folders):
        return ""
    return (
        f"the classes are {shortened(found.classes)}, each with the folders {shortened(first)} "
        "in it; if those are the classes, name the folders above them train and test"
    )


def refuse_overlap(folder: Path, found: Layout) -> None:
    """Refuses a folder of unlabelled images whose images are those of a split or class, too.

    Raises:
        ConfigError: It is a folder of the layout, or one lies in the other.
    """
    parts = list(found.parts.values())
    classes = [part / name for part in parts or [found.root] for name in found.classes]
    for other in [*parts, *classes]:
        inside, around = _holds(other, folder), _holds(folder, other)
        if inside or around:
            how = "is" if inside and around else "lies inside" if inside else "contains"
            every = "" if parts else " (without train/ and test/ every folder there is a class)"
            raise ConfigError(
                f"dataset.unlabelled_path={plain(folder)} {how} {plain(other)}, whose images are "
                f"used already{every}; choose a folder outside it with unlabelled images alone"
            )


def _holds(folder: Path, inner: Path) -> bool:
    """Whether a folder is another, or above it; links are followed."""
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(folder))


def _splits(root: Path, names: list[str]) -> dict[str, Path]:
    """The folders of the splits, of which there are train and test, or none."""
    parts: dict[str, Path] = {}
    for name in names:
        split = _SPLIT_OF.get(name.casefold())
        if split in parts:
            raise ConfigError(
                f"{plain(root)} has {parts[split].name}/ and {name}/; both mean the {split} "
                "split. Rename one or put them together"
            )
        if split:
            parts[split] = root / name
    missing = [split for split in ("train", "test") if split not in parts]
    if parts and missing:
        there = [path.name for path in parts.values()]
        raise ConfigError(
            f"{plain(root)} has {'/ and '.join(there)}/ but no {'/ and no '.join(missing)}/; "
            "expected train/ and test/ with class folders in them, or class folders alone (a class "
            f"that is called {there[0]} needs another name)"
        )
    return parts


def _filled(root: Path, left: Left) -> list[str]:
    """The class folders that hold images; the others are left out."""
    filled = []
    for name in _folders(root, left if root != left.root else Left(root)):
        if any(kind == IMAGE for kind, _ in _look(root / name)):
            filled.append(name)
        else:
            left.add(EMPTY, root / name)
    return filled


def _too_few(found: Layout) -> str:
    text = (
        f"{plain(found.named)} holds {len(found.classes)} class folders with images; expected at "
        "least 2, one per class"
    )
    if found.bare:
        text += "; it names the classes, because train/ has images without class folders"
    if empty := found.left.paths.get(EMPTY):
        text += f"; without images: {shortened(sorted(path.name for path in empty))}"
    # As an archive is unpacked: everything in one folder.
    inner = found.root / found.classes[0] if len(found.classes) == 1 and not found.parts else None
    if inner and len(_folders(inner, Left(inner))) > 1:
        text += f"; did you mean dataset.path={plain(inner)}?"
    return text


def class_files(root: Path, found: Layout) -> list[tuple[Path, int]]:
    """The images of the class folders below `root` with their class numbers.

    Raises:
        ConfigError: There is a folder with images that is no class.
    """
    if root == found.named:
        folders = {name: root / name for name in found.classes}
    else:
        folders = _class_of(root, found)
    return [
        (file, label)
        for label, name in enumerate(found.classes)
        if name in folders
        for file in images_in(folders[name], found.left)
    ]


def _class_of(root: Path, found: Layout) -> dict[str, Path]:
    """The folders of a split other than the one that names the classes, by their class."""
    known = {unicodedata.normalize("NFC", name): name for name in found.classes}
    folders = {}
    for name in _folders(root, found.left):
        same = unicodedata.normalize("NFC", name)  # file systems write accents in two ways
        if same in known:
            folders[known[same]] = root / name
        elif not any(kind == IMAGE for kind, _ in _look(root / name)):
            found.left.add(EMPTY, root / name)
        else:
            if (found.named / name).is_dir():
                why = f"has images, but {plain(found.named / name)} has none"
            else:
                why = f"is no class of {plain(found.named)}{suggest(name, found.classes)}"
            raise ConfigError(f"{plain(root / name)} {why}")
    return folders


def images_in(folder: Path, left: Left) -> list[Path]:
    """All images below a folder, sorted; what else is there is added to `left`."""
    images = []
    for kind, path in _look(folder):
        if kind == IMAGE:
            images.append(path)
        else:
            left.add(kind, path)
    return sorted(images)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # asks nothing more of each of a million images
            return [e for e in entries if e.name not in _JUNK and not e.name.startswith("._")]
    except OSError as error:
        raise ConfigError(f"{plain(folder)} can't be opened: {error.strerror}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _folders(root: Path, left: Left) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones and lost links are left out."""
    names = []
    for entry in _entries(root):
        if _is_folder(entry):
            if _is_hidden(entry.name):
                left.add(HIDDEN, root / entry.name)
            else:
                names.append(entry.name)
        elif entry.is_symlink() and not _is_file(entry):
            left.add(LINK, root / entry.name)
    return sorted(names)


def _direct_images(folder: Path) -> Iterator[Path]:
    """Files of images that lie in a folder itself, by their names."""
    for entry in _entries(folder):
        path = folder / entry.name
        if path.suffix.lower() in SUFFIXES and not _is_hidden(entry.name) and _is_file(entry):
            yield path


def _leads_back(link: Path, above: tuple[str, ...]) -> bool:
    target = os.path.realpath(link)
    return any(Path(folder).is_relative_to(target) for folder in above)


def _look(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[Kind, Path]]:
    """Every path below a folder that is no folder, with its kind; links are followed.

    Args:
        folder: The folder.
        above: The real paths of the folders on the way to it.
    """
    above = (*above, os.path.realpath(folder))
    for entry in _entries(folder):
        path = folder / entry.name
        promised = path.suffix.lower() in SUFFIXES
        if _is_hidden(entry.name):
            yield HIDDEN, path
        elif _is_folder(entry):
            if entry.is_symlink() and _leads_back(path, above):
                yield LOOP, path
                continue
            filled = False
            for kind, inner in _look(path, above):
                filled = filled or kind == IMAGE
                yield kind, inner
            if promised and not filled:
                yield FOLDER, path
        elif _is_file(entry):
            yield (IMAGE if promised or is_picture(path) else OTHER), path
        elif not promised:
            yield OTHER, path
        else:
            yield (LINK if entry.is_symlink() else SPECIAL), path
