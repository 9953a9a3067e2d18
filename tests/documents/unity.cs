// What docs/clients/*.cs use of Unity, so that a plain C# compiler can check them.
using System;

namespace UnityEngine
{
    public class MonoBehaviour { }

    public sealed class SerializeField : Attribute { }

    public static class Debug
    {
        public static void Log(object message) { }
    }

    public static class JsonUtility
    {
        public static string ToJson(object value) { return ""; }
        public static T FromJson<T>(string text) { return default(T); }
    }
}
