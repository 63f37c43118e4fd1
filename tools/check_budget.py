"""The size budget: no file over 500 lines, and 5000 lines of code in the package. Exit status 1 if over.

Lines of code leave out blank lines, comments and docstrings (this project documents every field of every setting);
the plain count of the package's lines is printed beside it.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, PACKAGE_CODE = 500, 5000
FOLDERS = ("src", "tests", "bench", "tools")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines that hold code."""
    texts = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    documented = {line for n in texts for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in NO_CODE]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - documented)


def main() -> int:
    """Count, print what is over budget, and the totals."""
    texts = {p.relative_to(ROOT): p.read_text() for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py"))}
    sizes = {path: len(text.splitlines()) for path, text in texts.items()}
    package = [path for path in texts if path.parts[0] == "src"]
    code = sum(code_lines(texts[path]) for path in package)
    over = [f"{path}: {size} lines, at most {FILE_LINES}" for path, size in sizes.items() if size > FILE_LINES]
    if code > PACKAGE_CODE:
        over.append(f"src: {code} lines of code, at most {PACKAGE_CODE}")
    plain = sum(sizes[path] for path in package)
    print(*over, f"budget: src has {code} of {PACKAGE_CODE} lines of code ({plain} lines in all)", sep="\n")
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
