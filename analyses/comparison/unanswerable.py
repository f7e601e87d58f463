"""When a study is whole, but was not recorded for a question."""


class Unanswerable(ValueError):
    """The study lacks what the question is about; the message says how to get it.

    `python -m analyses STUDY` skips such a question and says so; any other error fails it.
    """
