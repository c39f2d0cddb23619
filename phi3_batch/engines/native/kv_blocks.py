"""Blocks of keys and values: who has which, and which prompts begin alike.

A block holds the keys and values of :data:`BLOCK_TOKENS` tokens. A full one is known by its tokens
and all before them, so that another prompt that begins with them shares it. One that nobody has any
more stays as it is until its room is needed, those unused for longest first: a block is given back
after those that follow it, so that none is known by one that holds something else by now.
"""

from collections import OrderedDict
from collections.abc import Sequence

from phi3_batch.engines.native.library import BLOCK_TOKENS

# What a block is known by: the block before it, or minus the kind of sequence, and its tokens.
_Key = tuple[int, tuple[int, ...]]


class KVBlocks:
    """All blocks of a cache.

    Args:
        count: how many there are.
        shares_prefixes: whether full blocks are kept and found again.

    Attributes:
        count: how many there are.
    """

    def __init__(self, count: int, *, shares_prefixes: bool = True) -> None:
        self.count = count
        self._shares_prefixes = shares_prefixes
        self.reset()

    def reset(self) -> None:
        """Forget what is in the blocks, and who has them."""
        self._users = [0] * self.count
        self._key_of: dict[int, _Key] = {}
        self._known: dict[_Key, int] = {}
        # those that nobody has, in the order in which they were given back
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(self.count))

    def find(self, tokens: Sequence[int], kind: int) -> list[int]:
        """Known blocks of a sequence's beginning. Its last token is in none: it has to be read.

        Args:
            tokens: of the prompt.
            kind: sequences of different kinds share nothing.
        """
        found: list[int] = []
        before = -1 - kind
        for start in range(0, len(tokens) - BLOCK_TOKENS, BLOCK_TOKENS):
            block = self._known.get((before, tuple(tokens[start : start + BLOCK_TOKENS])))
            if block is None:
                break
            found.append(block)
            before = block
        return found

    def take(self, known: Sequence[int], count: int) -> list[int] | None:
        """Blocks for a sequence: known ones, and new ones until there are so many.

        Returns:
            The blocks, known ones first; None where there are not enough.
        """
        new = count - len(known)
        if new > self.room(known):
            return None
        for block in known:
            self._users[block] += 1
            self._free.pop(block, None)
        taken = [self._free.popitem(last=False)[0] for _ in range(new)]
        for block in taken:
            self._users[block] = 1
            self._forget(block)
        return [*known, *taken]

    def room(self, known: Sequence[int]) -> int:
        """How many blocks a sequence may have beside known ones."""
        return len(self._free) - sum(not self._users[block] for block in known)

    def fill(self, blocks: Sequence[int], tokens: Sequence[int], place: int, kind: int) -> None:
        """Make a sequence's block known, now that all of its tokens are read, or being read.

        Args:
            blocks: of the sequence.
            tokens: of the sequence.
            place: of the block among them.
            kind: of the sequence.
        """
        before = blocks[place - 1] if place else -1 - kind
        key = before, tuple(tokens[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS])
        if self._shares_prefixes and key not in self._known:
            self._known[key] = blocks[place]
            self._key_of[blocks[place]] = key

    def give_back(self, blocks: Sequence[int]) -> None:
        """What a sequence had, when it is over. Its end goes first when room is needed."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None

    def _forget(self, block: int) -> None:
        """A block is given to somebody new: what it held is no more."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._known[key]
