"""The question before an action, and what all keys do."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from cortex.cli.top.actions import Action, Question

NO = "no, leave it as it is"


class Ask(ModalScreen[Action | None]):
    """Asks; ``y`` takes the first choice, Enter the one under the cursor, which begins at no."""

    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > Vertical { width: 72; max-width: 95%; height: auto; max-height: 90%;
                     padding: 1 2; border: round $accent; background: $surface; }
    Ask OptionList { height: auto; max-height: 10; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "yes"),
        Binding("n,escape", "no", "no"),
    ]

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        """Show the question, no, and the choices."""
        with Vertical():
            yield Static(Text(self.question.text), markup=False)
            choices = (choice.label for choice in self.question.choices)
            yield OptionList(*map(Text, (NO, *choices)))
            yield Static(Text("y: the second   n, Esc: no   Enter: the one chosen", "dim"))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.question.choices[event.option_index - 1] if event.option_index else None)

    def action_yes(self) -> None:
        self.dismiss(self.question.choices[0])

    def action_no(self) -> None:
        self.dismiss(None)


class Keys(ModalScreen[None]):
    """Lists the keys that do something where ``?`` was pressed."""

    DEFAULT_CSS = """
    Keys { align: center middle; }
    Keys > VerticalScroll { width: 60; max-width: 95%; height: auto; max-height: 90%;
                            padding: 1 2; border: round $accent; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q", "leave", "back")]

    def __init__(self, keys: list[tuple[str, str]]) -> None:
        super().__init__()
        self._keys = keys

    def compose(self) -> ComposeResult:
        """Show a line a key."""
        with VerticalScroll():
            lines = [f"{key:<12} {what}" for key, what in self._keys]
            yield Static(Text("\n".join(lines)), markup=False)

    def action_leave(self) -> None:
        self.dismiss(None)
