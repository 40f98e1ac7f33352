FLOORS={}
def floors(): return {}
