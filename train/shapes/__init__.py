"""Moving Shapes: the embedded world that renders, captions and measures small videos."""
