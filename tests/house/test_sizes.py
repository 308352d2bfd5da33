"""Files and functions have a length that one can read."""

import ast

MOST_LINES_OF_A_FILE = 600
MOST_LINES_OF_A_FUNCTION = 60


def functions(path):
    """(place, lines) of every function and method of a file, docstring and all."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_no_file_is_long(python_files):
    lengths = {path.name: len(path.read_text().splitlines()) for path in python_files}
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE}


def test_no_function_is_long(python_files):
    lengths = [found for path in python_files for found in functions(path)]
    assert not [found for found in lengths if found[1] > MOST_LINES_OF_A_FUNCTION]
