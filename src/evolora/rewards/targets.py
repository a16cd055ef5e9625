"""What a data row's target may be, for the rewards that read it as text."""


def target_text(target: object) -> str | None:
    """The target as stripped text; None, which means that there is nothing to score by, stays None.

    Raises TypeError for what is neither text nor a number.

    >>> target_text(" four "), target_text(4), target_text(None)
    ('four', '4', None)
    """
    if target is None:
        return None
    if isinstance(target, bool) or not isinstance(target, str | int | float):
        raise TypeError(f"the target is {target!r}, expected text or a number")
    return str(target).strip()


def target_texts(target: object) -> list[str] | None:
    """The target, or each of a list of targets, as stripped text; None stays None.

    Raises TypeError for what is neither text, nor a number, nor a list of these, and ValueError for an empty list.

    >>> target_texts("hello"), target_texts(["hello", "hi "]), target_texts(None)
    (['hello'], ['hello', 'hi'], None)
    """
    if not isinstance(target, list | tuple):
        text = target_text(target)
        return None if text is None else [text]
    if not target:
        raise ValueError("the target is an empty list, expected at least one text")
    texts = [text for one in target if (text := target_text(one)) is not None]
    if len(texts) < len(target):
        raise TypeError(f"the target is {target!r}, expected a list of texts without null")
    return texts
