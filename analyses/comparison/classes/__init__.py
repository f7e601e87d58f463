"""Two arms compared class by class of tokens, and token id by token id."""
