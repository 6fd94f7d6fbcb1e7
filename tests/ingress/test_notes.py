"""Notes: what a session leaves for another ingress, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rearview.contract.memories import CacheSettings
from rearview.contract.settings import Settings
from rearview.contract.similarity import SimilaritySettings
from rearview.contract.stream import DropPolicy
from rearview.ingress.notes import Note, Notes
from support.edge import TENANT, EdgeCore, picture, terms

pytestmark = pytest.mark.unit


class NotedCore(EdgeCore):
    """An edge that leaves notes as a session does."""

    def __init__(self, **options: object) -> None:
        agreed = terms(**options)  # type: ignore[arg-type]
        super().__init__(agreed)
        self.writer = Notes(agreed, self.feed, lambda: self.intake.state(0, 0))
        send = self.feed.send

        def noted(admitted, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.writer.admitted(admitted)
            send(admitted, *args, **kwargs)

        self.feed.send = noted  # type: ignore[method-assign]

    @property
    def notes(self) -> list[tuple[int, Note]]:
        return [(begins, Note.from_json(text)) for _, begins, text in self.sender.notes]


def test_a_note_is_there_before_the_first_frame_and_says_what_was_agreed() -> None:
    core = NotedCore()
    ((begins, note),) = core.notes
    assert begins == -1
    assert note.terms(TENANT, "token") == terms_with_token()
    assert Note.from_json(note.to_json()) == note


def terms_with_token() -> object:
    agreed = terms()
    return replace(agreed, resume_token="token")


def test_frames_alone_need_no_note() -> None:
    core = NotedCore()
    for index in range(4):
        core.offer(index, picture(index))
    assert len(core.notes) == 1


def test_settings_are_noted_when_they_are_asked_for_and_when_the_lane_gets_them() -> None:
    core = NotedCore()
    core.offer(5, picture(0))
    core.intake.apply(Settings("b"))
    core.writer.changed()
    core.offer(9, picture(1))
    _, asked, in_force = core.notes
    assert (asked[0], asked[1].state.settings, asked[1].state.in_force) == (-1, Settings("b"), Settings("a"))
    assert (in_force[0], in_force[1].state.in_force) == (1, Settings("b"))
    # Until its frame is there, the last one that was admitted is the one before.
    assert (in_force[1].place, in_force[1].index) == (0, 5)


def test_a_note_goes_ahead_of_its_frame() -> None:
    core, order = NotedCore(similarity=SimilaritySettings(0.9, 2)), []
    send_note, send_frame = core.sender.send_note, core.sender.send_frame
    core.sender.send_note = lambda *args: (order.append("note"), send_note(*args))[1]  # type: ignore[method-assign, assignment, func-returns-value]
    core.sender.send_frame = lambda *args: (order.append("frame"), send_frame(*args))[1]  # type: ignore[method-assign, func-returns-value]
    for index in range(2):
        core.offer(index, picture(index))
    assert order == ["note", "frame", "note", "frame"]
    assert [begins for begins, _ in core.notes] == [-1, 0, 1]


def test_a_warm_up_that_is_over_is_noted_once() -> None:
    core = NotedCore(cache=CacheSettings())
    for index in range(3):
        core.offer(index, picture(index))
    noted = len(core.notes)
    for frame in tuple(core.sender.frames):
        core.comes_back(frame)
        core.writer.came_back()
    assert len(core.notes) == noted + 1
    assert core.notes[-1][1].state.warm_up.prefilled == 0


def test_another_first_span_gets_the_note_anew() -> None:
    core = NotedCore()
    core.offer(3, picture(0))
    core.writer.again()
    begins, note = core.notes[-1]
    assert (begins, note.place, note.index) == (-1, 0, 3)


def test_a_frame_without_a_picture_is_noted_where_others_are_compared_with_it() -> None:
    core = NotedCore(policy=DropPolicy.DEADLINE, budget_s=0.5, similarity=SimilaritySettings(0.9, 2))
    core.offer(0, picture(0))
    assert core.notes[-1][1].state.similarity.reference is not None
    core.now = 7.0
    core.comes_back(core.sender.frames[0])
    core.writer.forgot()
    core.writer.forgot()
    begins, note = core.notes[-1]
    assert (begins, note.state.similarity.reference, len(core.notes)) == (0, None, 3)
