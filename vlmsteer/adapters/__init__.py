"""One file a model family: where its towers, layers and points are, as data, and what it can and cannot do."""
