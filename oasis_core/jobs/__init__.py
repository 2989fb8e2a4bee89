"""Long jobs: segments that are kept as they are finished, so that an interrupted job goes on where it was."""
