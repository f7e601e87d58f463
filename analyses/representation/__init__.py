"""Labelled layer for hidden states: what runs recorded, compared and read out."""
