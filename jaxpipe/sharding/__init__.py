"""Where arrays lie: logical axes, meshes, memory, and the plan that places a model's weights."""
