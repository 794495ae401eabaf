"""One file per Hub ``model_type``: config, modules, weight-name exceptions, registration."""
