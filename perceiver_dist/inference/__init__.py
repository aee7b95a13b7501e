"""Using what was trained: loading, predicting, evaluating, looking at attention."""
