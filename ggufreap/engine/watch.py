"""How llama.cpp asks, node by node, what a tap wants of the graph that it computes."""

from collections.abc import Callable

from ggufreap.engine.taps import NodeHandler, Tap


class Watch:
    """Hands the nodes of a graph to its tap; `stop` ends the graph where a tap fails, `stopping` says that it ends."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop, self.stopping = stop, False
        self._tap: Tap | None = None
        self._handler: NodeHandler | None = None
        self._failure: BaseException | None = None
        self._ended = False

    def begin(self, tap: Tap | None) -> None:
        """A graph begins."""
        self._tap = tap
        if tap is not None:
            tap.begin()

    def check(self) -> None:
        """Raise what the tap raised."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """The graph has ended, one way or another."""
        self._tap = self._failure = None
        self.stopping = self._ended = False

    def on_node(self, pointer: int, ask: bool, _data: int) -> bool:
        """ggml_backend_sched_eval_callback: asked about every node first, called again with each wanted one.

        An exception cannot cross C, so it is kept for `check`, and the graph is stopped. A tap's False only ends the
        current split (ggml-backend.cpp, compute_splits): the others still run, unseen, on whatever is there. Harmless
        behind the last MoE block, where taps end: nothing there is chosen by an id.
        """
        if self._tap is None or self.stopping or self._ended:
            return not ask
        try:
            if ask:
                self._handler = self._tap.handler_of(pointer)
                return self._handler is not None
            self._ended = not (self._handler is None or self._handler(pointer))
            return not self._ended
        except BaseException as error:
            self._failure = error
            self._stop()
            return not ask
