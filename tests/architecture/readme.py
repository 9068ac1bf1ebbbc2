"""Reads the code blocks of a Markdown page."""

import re

BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
TARGET = re.compile(r"^([A-Za-z][\w-]*)\s*:(?!=)", re.M)
SHELL = ("bash", "sh", "shell", "console")


def blocks(text: str, *languages: str) -> list[str]:
    """The code of the blocks marked with one of `languages`."""
    return [code for language, code in BLOCK.findall(text) if language in languages]


def make_targets(text: str) -> list[str]:
    """Every target that a shell block of `text` calls with make."""
    targets = []
    for code in blocks(text, *SHELL):
        for line in code.splitlines():
            command = line.partition("#")[0].removeprefix("$ ")
            for words in (part.split() for part in re.split(r"&&|;|\|", command)):
                if words[:1] == ["make"]:
                    targets += [w for w in words[1:] if "=" not in w and not w.startswith("-")]
    return targets


def known_targets(makefile: str) -> set[str]:
    """The targets that a Makefile defines."""
    return set(TARGET.findall(makefile))
