"""Numbers of things in words."""


def number_of(n: int, what: str) -> str:
    """`n` with the word for it, `1 fact` or `1,138 facts`; `what` is the word for one."""
    return f"{n:,} {what}{'s' * (n != 1)}"
