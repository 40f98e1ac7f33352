def reproduce() -> None:
    pass
