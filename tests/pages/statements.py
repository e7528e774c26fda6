"""The commands and programs in README.md and docs/, as they are written there."""

import dataclasses
import itertools
import pathlib
import re

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A command of a page; `output` is what the page says that it prints, if it does."""

    page: str
    line: int
    text: str
    output: str | None = None

    def __str__(self):
        return f"{self.page}:{self.line} {self.text.splitlines()[0][:50]}"


def blocks(repository):
    """Yield the fenced blocks: page, number of the first line, language and text."""
    for path in (repository / "README.md", *sorted(repository.glob("docs/*.md"))):
        page, content = path.relative_to(repository).as_posix(), path.read_text()
        for match in _BLOCK.finditer(content):
            line = content.count("\n", 0, match.start("text")) + 1
            yield page, line, match["language"], match["text"]


def statements(repository):
    """Return the commands of all blocks without a language, and those with `$ ` and their output.

    A block in ```text is a diagram or output of a command.
    """
    found = []
    for page, line, language, text in blocks(repository):
        if language == "" and text.startswith("$ "):
            command, _, output = text.removeprefix("$ ").partition("\n")
            found.append(Statement(page, line, command, output))
        elif language == "":
            found.extend(Statement(page, line + n, lines) for n, lines in _split(text))
    different = {}
    for statement in found:  # several pages have some
        different.setdefault(_without_spaces(statement.text), statement)
    return list(different.values())


def _without_spaces(command):
    return " ".join(re.sub(r"\s#.*", "", command).split())


def _split(text):
    """Yield the number of the first line and the lines of each command of a shell block."""
    collected, first, depth = [], 0, 0
    for number, line in enumerate(text.splitlines()):
        collected, first = [*collected, line], first if collected else number
        depth += len(re.findall(r"\bdo\b", line)) - len(re.findall(r"\bdone\b", line))
        depth = 0 if not re.search(r"^\s*for\b", "\n".join(collected), re.MULTILINE) else depth
        quoted = "\n".join(collected).count('"') % 2
        if line.endswith("\\") or depth or quoted:
            continue
        if not line.lstrip().startswith("#") and line.strip():
            yield first, "\n".join(collected)
        collected = []
    assert not collected, f"an unfinished command: {collected}"


def programs(repository):
    """Return the Python programs: for each page, its blocks in Python.

    Those for timm and letters are left out: their packages are not among the requirements.
    """
    python = [
        (page, text)
        for page, _, language, text in blocks(repository)
        if language == "python" and not re.search('import timm|"letters"', text)
    ]
    groups = itertools.groupby(python, key=lambda block: block[0])
    return {page: "\n".join(text for _, text in group) for page, group in groups}


def outputs(command):
    """Return the directories and files that a command's flags name as its results."""
    named = re.findall(r"--(?:workdir|out|confusion)[ =](\S+)", command)
    converted = re.search(r"convit_jax\.convert +\S+ (\S+)", command)
    named += [converted[1]] if converted else []
    return [pathlib.Path(name) for name in named if "$" not in name and "://" not in name]
