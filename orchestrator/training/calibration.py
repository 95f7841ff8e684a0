"""c_ref: measured, compared, checked."""

CALIBRATION_SEED = 2**41
C_REF_TOLERANCE = 0.25
"""Error of the score, at which a c_ref that was given and not measured is worth a warning."""
