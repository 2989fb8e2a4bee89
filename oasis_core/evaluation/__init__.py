"""How good a restored clip is, measured against its ground truth (extra ``[evaluate]``; the perceptual network also trains)."""
