"""The world of Moving Shapes: scenes, pictures, captions, and the oracle that measures clips."""
