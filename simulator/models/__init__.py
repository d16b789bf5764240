"""Models that are shipped: ``pump.onnx``, made by ``python -m simulator.train --demo``."""
