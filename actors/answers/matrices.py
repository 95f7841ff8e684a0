"""A matrix from an expression of matrices: sums, differences, and products with numbers."""

from actors.answers.forms import Matrix
from actors.answers.nodes import Node
from actors.answers.tokens import Unread


def matrix_of(node: Node) -> Matrix:
    """The matrix that an expression with one makes.

    Raises:
        Unread: An operation other than a sum, a difference or a multiple.
    """
    if node.op == "matrix":
        return Matrix(node.args[0], tuple(node.args[1:]))
    if node.op == "neg":
        matrix = matrix_of(node.args[0])
        return Matrix(matrix.columns, tuple(Node("neg", (entry,)) for entry in matrix.entries))
    if node.op == "mul" and (node.args[0].op == "matrix") != (node.args[1].op == "matrix"):
        first, second = node.args
        factor, matrix = (first, matrix_of(second)) if second.op == "matrix" else (second, matrix_of(first))
        return Matrix(matrix.columns, tuple(Node("mul", (factor, entry)) for entry in matrix.entries))
    if node.op == "div" and node.args[0].op == "matrix":
        matrix = matrix_of(node.args[0])
        return Matrix(matrix.columns, tuple(Node("div", (entry, node.args[1])) for entry in matrix.entries))
    if node.op == "add":
        matrices = [matrix_of(part) for part in node.args]
        if len({(matrix.columns, len(matrix.entries)) for matrix in matrices}) == 1:
            columns = zip(*(matrix.entries for matrix in matrices), strict=True)
            return Matrix(matrices[0].columns, tuple(Node("add", entries) for entries in columns))
    raise Unread("an operation on a matrix")
