"""Reads texts out of other projects' Python files: they are parsed, and nothing of them is run."""

import ast


def constants(code: bytes) -> dict[str, str]:
    """Returns the texts that a Python file assigns to names and attributes, by name; of several of one name the last in
    the module's own body. Raises SyntaxError or ValueError for what is no Python."""
    tree, found = ast.parse(code), {}
    for node in (*ast.walk(tree), *tree.body):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [getattr(t, "attr", getattr(t, "id", None)) for t in node.targets]
            found |= dict.fromkeys(names, node.value.value)
    return {name: text for name, text in found.items() if name and isinstance(text, str)}
