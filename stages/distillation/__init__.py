"""Distillation (Hinton et al., arXiv:1503.02531): a student learns the answers of a frozen float32 teacher."""
