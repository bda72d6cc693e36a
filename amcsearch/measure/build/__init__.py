"""From measurements to a latency table: attribution, calibration, anchors."""
