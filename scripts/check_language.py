"""Check names and texts for words that the project does not use; prints each and exits with 1 if there is any.

Run as ``python scripts/check_language.py [FILE...]``; without files it checks all that git tracks.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

NAMES = {
    **dict.fromkeys(["told", "said", "tells", "says"], "reported, or what it is"),
    **dict.fromkeys(["given", "found", "kept"], "what it holds: arguments, result, saved"),
    **dict.fromkeys(["right", "righted"], "correct"),
    **dict.fromkeys(["alike"], "similar, equal"),
    **dict.fromkeys(["place", "once", "piece", "thing", "kind", "kinds"], "what it is: path, unique, part, item, type"),
    "track_": "progress",
}
"""Names of variables, parameters, functions and classes, with what to write instead."""

PHRASES = {
    r"\banew\b": "again, fresh",
    r"\bbut for\b": "except",
    r"\b(is|are|be|were|was) told\b|\btold (apart|by|of|in)\b": "reported, printed, listed, distinguished",
    r"\bthere is [^.]{0,60}, [^.]{0,60} (and|or) ": "choose from ...",
    r"\b(images|patches|labels|heads|pixels) an? (batch|class|step|image|layer|group|head)\b": "... per ...",
    r"\b(one|a row|a line|a pass|a label|a mask|a folder) an? (image|class|model|unit|line)\b": "one ... per ...",
    r"\bcannot be had\b|\bcould be had\b|\bcan be had\b": "is unavailable",
    r"\bhelped or harmed\b|\bcannot tell\b": "improved, regressed, inconclusive",
    r"\bgives? (the|its|their|a) class away\b": "is spuriously correlated with the class",
    r"\b(the|a|its|other|another|own) grounds?\b": "background",
    r"\bholds? up\b": "is robust",
    r"\bheld against\b|\bhold against\b|\bheld up against\b": "compared with",
    r"\bput right\b|\bmade wrong\b": "corrected, newly misclassified",
    r"\btoo sure\b": "overconfident",
    r"\bleans? (low|high|on|up|down)\b": "is biased, relies on",
    r"\bluck\b": "chance",
    r"\bhopeless\b": "pruned",
    r"\brightly\b": "correctly",
    r"\bas (it|they) (was|were) given\b": "the original model",
    r"\bpictures?\b": "image, figure",
    r"\bdear\b": "expensive",
    r"\bwith commas\b": "comma-separated",
    r"\bOf everything that is drawn\b": "Random seed.",
    r"\btake for granted\b|\btaken for\b": "predicted as",
    r"\bnobody\b": "what it is",
    r"\bbefore hours of work\b": "early",
    r"\bwhat befell\b|\bbefell\b": "what happened to",
    r"\bhence\b|\bthereby\b|\bthereof\b|\bwhereof\b": "plain words",
}
"""Phrases in texts that people read, as regular expressions, with what to write instead."""

TEXTS = (".md", ".py", ".yaml", ".yml", ".toml", ".cff", ".j2")
EXEMPT = ("scripts/check_language.py", "LICENSE")


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the names that a module binds, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def texts_in(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Yield what people read in a file, with its lines: all of a document, comments and strings of a module."""
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for i, line in enumerate(token.string.splitlines()):
                yield token.start[0] + i, line


def problems_in(path: Path) -> Iterator[str]:
    """Yield a line for each word to replace."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for line, name in names_in(ast.parse(source)):
            plain = name.lower().strip("_")
            if plain in NAMES:
                yield f"{path}:{line}: name {name!r}: use {NAMES[plain]}"
    for line, text in texts_in(path, source):
        for pattern, better in PHRASES.items():
            if match := re.search(pattern, text):
                yield f"{path}:{line}: {match[0]!r}: use {better}"


def main() -> None:
    """Check the files named, or all that git tracks."""
    listed = (
        sys.argv[1:] or subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    )
    paths = [Path(name) for name in listed if name.endswith(TEXTS) and name not in EXEMPT and Path(name).is_file()]
    problems = [problem for path in paths for problem in problems_in(path)]
    print("\n".join(problems))
    print(f"{len(problems)} words to replace in {len(paths)} files" if problems else f"{len(paths)} files checked")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
