from __future__ import annotations

from torch import nn

from fedlab.method import Method, Task


class Linear(Method):
    """A method that promises nothing."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Linear(1, 1)}


def test_a_promise_is_made_by_a_class_for_itself_alone() -> None:
    class Promising(Linear):
        functional_loss = True

    class Heir(Promising):
        pass

    class Revoking(Promising):
        functional_loss = False

    assert Promising.promises("functional_loss")
    assert Promising().promises("functional_loss")
    assert not Promising.promises("per_example_loss")
    assert not Heir().promises("functional_loss")
    assert not Revoking().promises("functional_loss")
