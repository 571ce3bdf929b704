"""What benchmarks/predictors.py fits and scores: public measurements, what names tell, folds, a roofline."""
