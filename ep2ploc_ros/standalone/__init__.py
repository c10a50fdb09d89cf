"""Stand-ins, with the same signatures, for the parts of cv_bridge, tf2_ros and sensor_msgs_py that the nodes use."""
