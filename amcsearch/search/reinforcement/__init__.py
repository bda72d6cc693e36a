"""DDPG as in AMC: the layer-wise environment, its observation, and the agent."""
