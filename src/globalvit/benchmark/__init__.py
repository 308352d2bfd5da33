"""Speed and memory of models, measured beside others in one process: `globalvit benchmark`."""
