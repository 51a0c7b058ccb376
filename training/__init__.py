"""Pretraining and evaluation of MixSiam encoders: needs the extra `train`."""
